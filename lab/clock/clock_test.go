package clock_test

import (
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
)

func TestLabClock(t *testing.T) {
	system := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := clock.New(func() time.Time { return system })
	at := func(what string, want time.Time) {
		t.Helper()
		if got := c.Now(); !got.Equal(want) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	at("new", system)
	c.Advance(time.Hour)
	at("advanced", system.Add(time.Hour))
	system = system.Add(time.Minute)
	at("advanced and running", system.Add(time.Hour))
	frozen := c.Freeze(time.Time{}).Now
	system = system.Add(time.Minute)
	at("frozen", frozen)
	c.Advance(-time.Second)
	at("frozen and moved", frozen.Add(-time.Second))
	elsewhere := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	if state := c.Freeze(elsewhere); !state.Frozen || state.Offset != elsewhere.Sub(system) || !state.System.Equal(system) {
		t.Errorf("state %+v", state)
	}
	at("frozen elsewhere", elsewhere)
	if state := c.Reset(); state.Frozen || state.Offset != 0 {
		t.Errorf("state %+v", state)
	}
	at("reset", system)
}
