package scenarios

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/extensions/globals"
	"github.com/onsi/ginkgo/v2/formatter"
	"github.com/onsi/ginkgo/v2/types"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/trace"
)

// This is the only file that imports Ginkgo: scenarios go in, results come out.

// scenarioTimeout bounds one scenario that says nothing else.
const scenarioTimeout = 2 * time.Minute

// Options say which scenarios run, and who is told.
type Options struct {
	LabelFilter string       // a Ginkgo label filter, such as "aws && !rotation"; empty means all
	Slow        bool         // those with the label Slow too
	Focus       string       // a regular expression on names; empty means all
	JUnit       string       // file for a JUnit report; empty means none
	JSON        string       // file for a Ginkgo JSON report; empty means none
	Each        func(Result) // called when a scenario has ended; may be nil
}

// Result is how one scenario went.
type Result struct {
	Name     string          `json:"name"`
	Labels   []string        `json:"labels"`
	State    string          `json:"state"` // passed, failed, skipped, interrupted, timedout or panicked
	Seconds  float64         `json:"seconds"`
	Reason   string          `json:"reason,omitempty"`   // of a failure or a skip
	Location string          `json:"location,omitempty"` // of a failure
	Journeys [][]trace.Event `json:"journeys,omitempty"` // of the tokens of a failed scenario
}

// Failed says whether the scenario neither passed nor was skipped.
func (r Result) Failed() bool { return r.State != "passed" && r.State != "skipped" }

// Summary is how all scenarios went.
type Summary struct {
	Passed      int      `json:"passed"`
	Failed      int      `json:"failed"`
	Skipped     int      `json:"skipped"` // for want of a capability
	Seconds     float64  `json:"seconds"`
	Interrupted bool     `json:"interrupted,omitempty"`
	Results     []Result `json:"results"`
}

// Run runs scenarios, one after the other, against the lab that client talks
// to. Failed scenarios are no error; a selection that selects nothing is.
// It must not be called twice at the same time: Ginkgo has one suite a process.
func Run(ctx context.Context, client *control.Client, options Options) (Summary, error) {
	suite, reporter, err := configure(options)
	if err != nil {
		return Summary{}, err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return Summary{}, err
	}
	if !status.Ready {
		return Summary{}, problem.New(problem.NotReady, "oidclab status", "the lab is not ready: %s", strings.Join(status.Problems, "; "))
	}

	globals.Reset()
	defer globals.Reset()
	formatter.ColorableStdOut = io.Discard // Ginkgo's own report; ours is made of the results
	run := &runner{client: client, options: options, journeys: map[string][]string{}}
	ginkgo.Describe("oidclab", ginkgo.Ordered, ginkgo.ContinueOnFailure, func() {
		for i, scenario := range All() {
			name := fmt.Sprintf("scenario-%d-%d", time.Now().Unix(), i)
			ginkgo.It(scenario.Name, ginkgo.Label(scenario.Labels...), ginkgo.SpecTimeout(max(scenario.Timeout, scenarioTimeout)), func(ctx ginkgo.SpecContext) {
				for _, need := range scenario.Needs {
					if why := need.Missing(status.Info); why != "" {
						ginkgo.Skip("needs " + need.Name + ": " + why)
					}
				}
				run.scenario(ctx, scenario, status.Info, name)
			})
		}
	})
	ginkgo.ReportAfterEach(run.report)
	began := time.Now()
	ginkgo.RunSpecs(ignoredFail{}, "oidclab", suite, reporter)
	run.summary.Seconds = time.Since(began).Seconds()
	if run.summary.Interrupted || ctx.Err() != nil {
		return run.summary, context.Canceled
	}
	if len(run.summary.Results) == 0 {
		return run.summary, problem.New(problem.Usage, "oidclab scenarios list", "no scenario is selected")
	}
	return run.summary, nil
}

// ignoredFail is what Ginkgo tells that a spec failed: the results say so.
type ignoredFail struct{}

func (ignoredFail) Fail() {}

func configure(options Options) (types.SuiteConfig, types.ReporterConfig, error) {
	suite, reporter := ginkgo.GinkgoConfiguration()
	if _, err := types.ParseLabelFilter(options.LabelFilter); err != nil {
		return suite, reporter, problem.New(problem.Usage, "oidclab scenarios list", "the label filter %q: %v", options.LabelFilter, err)
	}
	if options.Focus != "" {
		if _, err := regexp.Compile(options.Focus); err != nil {
			return suite, reporter, problem.New(problem.Usage, "oidclab scenarios list", "--focus: %w", err)
		}
		suite.FocusStrings = []string{options.Focus}
	}
	suite.LabelFilter = options.LabelFilter
	if !options.Slow {
		suite.LabelFilter = "!" + Slow
		if options.LabelFilter != "" {
			suite.LabelFilter = "(" + options.LabelFilter + ") && !" + Slow
		}
	}
	reporter.NoColor = true
	reporter.JUnitReport = options.JUnit
	reporter.JSONReport = options.JSON
	return suite, reporter, nil
}

// runner collects what Ginkgo tells.
type runner struct {
	client   *control.Client
	options  Options
	journeys map[string][]string // by scenario
	summary  Summary
}

func (r *runner) scenario(ctx context.Context, scenario Scenario, info lab.Info, name string) {
	session, err := newSession(ctx, r.client, info, name, ginkgo.Fail)
	if err != nil {
		ginkgo.Fail(err.Error())
	}
	defer func() {
		r.journeys[scenario.Name] = session.journeys
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
		defer cancel()
		if err := session.close(undo); err != nil {
			ginkgo.Fail("cleaning up: " + err.Error())
		}
	}()
	scenario.Run(ctx, session)
}

func (r *runner) report(spec types.SpecReport) {
	if spec.State.Is(types.SpecStatePending) || (spec.State.Is(types.SpecStateSkipped) && spec.Failure.Message == "") {
		return // not selected
	}
	result := Result{
		Name: spec.LeafNodeText, Labels: spec.LeafNodeLabels, State: spec.State.String(), Seconds: spec.RunTime.Seconds(), Reason: spec.Failure.Message,
	}
	switch {
	case spec.State.Is(types.SpecStatePassed):
		r.summary.Passed++
	case spec.State.Is(types.SpecStateSkipped):
		r.summary.Skipped++
	default:
		r.summary.Failed++
		r.summary.Interrupted = r.summary.Interrupted || spec.State.Is(types.SpecStateInterrupted)
		result.Location = spec.Failure.Location.String()
		result.Journeys = r.fetch(r.journeys[result.Name])
	}
	r.summary.Results = append(r.summary.Results, result)
	if r.options.Each != nil {
		r.options.Each(result)
	}
}

// fetch returns the events of journeys. A trace that cannot be had must not
// hide why a scenario failed.
func (r *runner) fetch(ids []string) [][]trace.Event {
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	var journeys [][]trace.Event
	for _, id := range ids {
		var events []trace.Event
		err := r.client.Trace(ctx, id, false, func(e trace.Event) error {
			events = append(events, e)
			return nil
		})
		if err == nil && len(events) > 0 {
			journeys = append(journeys, events)
		}
	}
	return journeys
}
