package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

const (
	benchRounds = 5  // labs brought up and taken down
	helpRounds  = 21 // runs of --help
)

// BenchmarkLimits shows the figures that a person waits for beside the limits
// that the project has set itself for two cores. It fails nothing: a figure is
// the machine's as much as the program's. To run it:
//
//	go test -run - -bench Limits ./e2e
//
// With a vault program on PATH, Vault is part of the lab.
func BenchmarkLimits(b *testing.B) {
	for b.Loop() {
		table := measure(b)
		b.Log("\n" + table)
	}
}

func measure(b *testing.B) string {
	u := newUser(b)
	u.run(b, "version").want(b, 0) // into the page cache
	var help, up, credentials, down []time.Duration
	var resident, proportional []int
	for range helpRounds {
		help = append(help, u.run(b, "--help").want(b, 0).took)
	}
	for range benchRounds {
		up = append(up, u.run(b, "up", "--name", labName).want(b, 0).took)
		credentials = append(credentials, u.run(b, "exchange", "aws", "--name", labName).want(b, 0).took)
		rss, pss := u.memory(b)
		resident, proportional = append(resident, rss), append(proportional, pss)
		u.observe(b)
		down = append(down, u.run(b, "down", "--name", labName).want(b, 0).took)
	}

	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tMEDIAN\tWORST\tLIMIT\t")
	row := func(name string, figures []time.Duration, limit time.Duration) {
		slices.Sort(figures)
		median, worst := figures[len(figures)/2], figures[len(figures)-1]
		fmt.Fprintf(w, "%s\t%.2f s\t%.2f s\t%.2f s\t%s\n", name, median.Seconds(), worst.Seconds(), limit.Seconds(), verdict(median <= limit))
	}
	row("up, to everything ready", up, 4500*time.Millisecond)
	row("first AWS credentials after that", credentials, 300*time.Millisecond)
	row("down", down, 2*time.Second)
	row("--help", help, 100*time.Millisecond)
	const mebibyte, limit = 1 << 20, 900
	slices.Sort(resident)
	slices.Sort(proportional)
	rss, pss := resident[benchRounds/2]/mebibyte, proportional[benchRounds/2]/mebibyte
	fmt.Fprintf(w, "resident, supervisor and children\t%d MiB\t%d MiB\t%d MiB\t%s\n", rss, resident[benchRounds-1]/mebibyte, limit, verdict(rss <= limit))
	fmt.Fprintf(w, "  of which shared pages counted once\t%d MiB\t%d MiB\t\t\n", pss, proportional[benchRounds-1]/mebibyte)
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	return out.String()
}

func verdict(reached bool) string {
	if reached {
		return "reached"
	}
	return "MISSED"
}

// memory returns the resident memory of all the user's processes in bytes: the
// sum of what each has mapped, and the same with shared pages divided among
// those that share them (Rss and Pss of proc_pid_smaps_rollup(5)).
func (u *user) memory(b *testing.B) (rss, pss int) {
	b.Helper()
	for pid := range u.processes() {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) != 3 || fields[2] != "kB" {
				continue
			}
			kilobytes, err := strconv.Atoi(fields[1])
			if err != nil {
				b.Fatal(err)
			}
			switch fields[0] {
			case "Rss:":
				rss += kilobytes << 10
			case "Pss:":
				pss += kilobytes << 10
			}
		}
	}
	return rss, pss
}
