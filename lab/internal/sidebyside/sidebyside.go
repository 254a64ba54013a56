// Package sidebyside measures rates that are to be compared. Each of its parts
// has its turn in every round, since a machine is never equally quiet twice; a
// ratio of two parts is taken within a round.
package sidebyside

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	rounds = 7
	turn   = 700 * time.Millisecond // of one part in one round
	warmUp = 200 * time.Millisecond // of each part, before the first round
)

// Part is one of the things that are compared.
type Part struct {
	Name string
	// Worker returns what a worker repeats. It is called once for each worker of
	// each turn, in the goroutine of the worker.
	Worker func() (func() error, error)
}

// Shared returns a Worker for an operation that all workers can repeat.
func Shared(operation func() error) func() (func() error, error) {
	return func() (func() error, error) { return operation, nil }
}

// Measure returns, for each part, how often its workers together did their
// operation, per second, in each round. It ends the benchmark at the first error.
func Measure(b *testing.B, workers int, parts ...Part) [][]float64 {
	b.Helper()
	rates := make([][]float64, len(parts))
	for i := range parts {
		parts[i].take(b, workers, warmUp)
	}
	for range rounds {
		for i := range parts {
			rates[i] = append(rates[i], parts[i].take(b, workers, turn))
		}
	}
	return rates
}

// take is one turn: it returns operations per second.
func (p Part) take(b *testing.B, workers int, turn time.Duration) float64 {
	b.Helper()
	var group sync.WaitGroup
	counts, failures := make([]int, workers), make([]error, workers)
	begin := time.Now()
	for w := range workers {
		group.Go(func() {
			operation, err := p.Worker()
			for err == nil && time.Since(begin) < turn {
				err = operation()
				counts[w]++
			}
			failures[w] = err
		})
	}
	group.Wait()
	took := time.Since(begin)
	total := 0
	for w := range workers {
		if failures[w] != nil {
			b.Fatal(fmt.Errorf("%s: %w", p.Name, failures[w]))
		}
		total += counts[w]
	}
	return float64(total) / took.Seconds()
}

// Median returns the middle of the values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
