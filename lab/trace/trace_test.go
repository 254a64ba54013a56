package trace

import (
	"strings"
	"sync"
	"testing"
)

func TestReadersHoldAPosition(t *testing.T) {
	log := New()
	events, more := log.Since(0)
	if len(events) != 0 {
		t.Fatalf("a new log holds %v", events)
	}
	log.Add(Event{Journey: "a", Step: "mint"})
	<-more
	log.Add(Event{Journey: "b", Step: "mint"})
	log.Add(Event{Journey: "a", Step: "use"})
	events, _ = log.Since(1)
	if len(events) != 2 || events[0].Seq != 2 || events[0].Time.IsZero() {
		t.Errorf("after 1: %+v", events)
	}
	if events, _ := log.Since(3); len(events) != 0 {
		t.Errorf("after the end: %+v", events)
	}
	if journey := log.Journey("a"); len(journey) != 2 || journey[1].Step != "use" {
		t.Errorf("journey: %+v", journey)
	}
}

func TestTheLogIsBoundedAndKeepsTheNewest(t *testing.T) {
	log := New()
	var group sync.WaitGroup
	const writers = 4
	for range writers {
		group.Go(func() {
			for range capacity / 2 {
				log.Add(Event{})
			}
		})
	}
	group.Wait()
	events, _ := log.Since(0)
	if len(events) != capacity {
		t.Errorf("%d events are kept", len(events))
	}
	for i := 1; i < len(events); i++ {
		if events[i].Seq != events[i-1].Seq+1 {
			t.Fatalf("%d follows %d", events[i].Seq, events[i-1].Seq)
		}
	}
	if last := events[len(events)-1].Seq; last != writers*capacity/2 {
		t.Errorf("the last is %d", last)
	}
}

func TestJourneyOfTellsNothingOfTheToken(t *testing.T) {
	const token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
	id := JourneyOf(token)
	if len(id) != 12 || id != JourneyOf(token) || id == JourneyOf(token+"x") || strings.Contains(token, id) {
		t.Errorf("journey %q", id)
	}
}

func TestNilLogDropsEvents(*testing.T) {
	var log *Log
	log.Add(Event{})
}
