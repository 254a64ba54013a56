# oidclab. `make` lists the targets.

# -trimpath and no cgo everywhere, so that build and tests share one compile of
# Kubernetes, and the binary runs in an image that holds nothing else.
export GOFLAGS += -trimpath
export CGO_ENABLED = 0

BINARY  := bin/oidclab
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
CLI     := github.com/oidclab/oidclab/cmd/oidclab/cli
KUBE    := k8s.io/component-base/version
LDFLAGS := -s -w -X $(CLI).version=$(VERSION) -X $(CLI).commit=$(COMMIT) \
           -X $(KUBE).gitVersion=$(shell go list -m -f '{{.Version}}' k8s.io/kubernetes)

# These link the control plane, or drive the binary that does: not with -race,
# which would compile all of Kubernetes once more.
HEAVY   := ./cmd/oidclab ./lab/cluster/embedded ./lab/cluster/embedded/controlplane ./lab/nodeagent ./e2e
# What runs nodes in Docker.
KIND    := ./lab/cluster/kind
LIGHT   := $$(go list ./... | grep -vxE 'github.com/oidclab/oidclab/(cmd/oidclab|lab/cluster/embedded|lab/cluster/embedded/controlplane|lab/cluster/kind|lab/nodeagent|e2e)')

# How long make fuzz lets each target run; make test takes a second.
FUZZTIME ?= 10s

TESTSUM := go tool gotestsum --format pkgname --format-hide-empty-pkg --hide-summary skipped

.PHONY: help build up down test unit kind fuzz engine e2e check bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/oidclab
	go build -ldflags '$(LDFLAGS)' -o $(BINARY) ./cmd/oidclab

up: build ## start a lab, exchange one token at every relying party, print the journeys
	$(BINARY) up
	@printf '\n== generic: RFC 8693 token exchange, then a protected resource\n'
	$(BINARY) exchange generic --trace
	@printf '\n== pure-ttl: the same at a relying party that keeps keys for an hour\n'
	$(BINARY) exchange generic --party pure-ttl --trace
	@printf '\n== aws: AssumeRoleWithWebIdentity, then GetCallerIdentity\n'
	$(BINARY) exchange aws --trace
	@printf '\n== gcp: token exchange, impersonation, then a bucket\n'
	$(BINARY) exchange gcp --trace
	@printf '\n== azure: client assertion, then a blob\n'
	$(BINARY) exchange azure --trace
	@printf '\n== stackit: client assertion, then a project\n'
	$(BINARY) exchange stackit --trace
	@if $(BINARY) env --for vault >/dev/null 2>&1; then \
		printf '\n== vault: login with a token, then a secret\n' && \
		$(BINARY) exchange vault --trace && $(BINARY) exchange vault --method kubernetes --trace; \
	else printf '\nvault: left out, since there is no vault program on PATH\n'; fi
	@printf '\nThe lab is up. Next: $(BINARY) status, $(BINARY) scenarios run, make down\n'

down: ## take the lab down
	$(BINARY) down

test: unit ## all tests
	@$(MAKE) --no-print-directory fuzz FUZZTIME=1s
	@$(MAKE) --no-print-directory engine kind e2e
	@command -v vault >/dev/null || echo 'left out: scenarios and tests that need Vault, since there is no vault program on PATH'

unit: ## tests of everything but the control plane and the binary, with -race
	CGO_ENABLED=1 $(TESTSUM) -- -race -timeout 10m $(LIGHT)

fuzz: ## let every fuzz target run for FUZZTIME
	@for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
		for target in $$(go test -list '^Fuzz' ./$$dir | grep '^Fuzz'); do \
			echo "$$dir $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$dir || exit 1; \
		done; \
	done

engine: ## the conformance suite on the embedded engine
	$(TESTSUM) -- -timeout 15m ./lab/cluster/embedded ./lab/nodeagent

kind: ## the conformance suite on the kind engine, where it can work
	$(TESTSUM) -- -timeout 25m $(KIND)

e2e: build ## the binary as its users meet it, and every scenario
	OIDCLAB_BINARY=$(CURDIR)/$(BINARY) $(TESTSUM) -- -timeout 20m ./e2e

check: ## gofmt, go vet, staticcheck, go.mod: all of them, then fail
	@fail=0; \
	unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed: $$unformatted"; fail=1; fi; \
	if grep -nE '^(replace|exclude)' go.mod; then echo 'go.mod: go install would refuse the module'; fail=1; fi; \
	go mod tidy -diff || fail=1; \
	go vet ./... || fail=1; \
	go tool staticcheck ./... || fail=1; \
	exit $$fail

bench: build ## the figures of the README, measured here
	go test -run '^$$' -bench 'Core|Bare' -benchtime 2s ./lab/sts
	go test -run '^$$' -bench . -benchtime 1x ./lab/sts/generic
	go test -run '^$$' -bench Front -benchtime 1x ./lab/issuer
	OIDCLAB_BINARY=$(CURDIR)/$(BINARY) go test -run '^$$' -bench . -benchtime 1x ./e2e
	OIDCLAB_BINARY=$(CURDIR)/$(BINARY) go test -run '^$$' -bench Up -benchtime 1x $(KIND)

clean: ## remove what was built
	rm -rf bin
