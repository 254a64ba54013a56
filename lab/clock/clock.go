// Package clock is the time of the lab: a clock that can be shown, frozen,
// advanced and reset. It drives the token service, its caches and the
// credentials it issues. Kubernetes and Vault keep the time of the machine.
package clock

import (
	"sync"
	"time"
)

// Clock tells the time. Whatever makes a decision that depends on time takes one.
type Clock interface {
	Now() time.Time
}

// System is the clock of the machine.
type System struct{}

// Now returns the time of the machine.
func (System) Now() time.Time { return time.Now() }

// Lab is a clock that starts as the system clock and can be moved.
// It is safe for concurrent use.
type Lab struct {
	system func() time.Time

	mu     sync.Mutex
	offset time.Duration // added to the system time while the clock runs
	frozen *time.Time    // the time shown while the clock stands
}

// New returns a lab clock that shows the system time. A nil system means time.Now.
func New(system func() time.Time) *Lab {
	if system == nil {
		system = time.Now
	}
	return &Lab{system: system}
}

// Now returns the time of the lab.
func (c *Lab) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *Lab) now() time.Time {
	if c.frozen != nil {
		return *c.frozen
	}
	// Round drops the monotonic reading, which knows nothing of the offset.
	return c.system().Add(c.offset).Round(0)
}

// Advance moves the clock by d, which may be negative. A frozen clock stays frozen.
func (c *Lab) Advance(d time.Duration) State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frozen != nil {
		t := c.frozen.Add(d)
		c.frozen = &t
	} else {
		c.offset += d
	}
	return c.state()
}

// Freeze stops the clock at t; the zero time means now.
func (c *Lab) Freeze(t time.Time) State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.IsZero() {
		t = c.now()
	}
	t = t.Round(0)
	c.frozen = &t
	return c.state()
}

// Reset makes the clock show the system time again.
func (c *Lab) Reset() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.frozen = 0, nil
	return c.state()
}

// State is what the clock shows and how that relates to the system time.
type State struct {
	Now    time.Time     `json:"now"`
	System time.Time     `json:"system"`
	Offset time.Duration `json:"offsetNanoseconds"` // Now - System
	Frozen bool          `json:"frozen"`
}

// State returns what the clock shows.
func (c *Lab) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state()
}

func (c *Lab) state() State {
	system := c.system().Round(0)
	now := system.Add(c.offset)
	if c.frozen != nil {
		now = *c.frozen
	}
	return State{Now: now, System: system, Offset: now.Sub(system), Frozen: c.frozen != nil}
}
