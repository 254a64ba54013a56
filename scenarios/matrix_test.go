package scenarios

import "testing"

// TestMatrix wants a cell for each mutation and party, and a scenario for each
// refusal.
func TestMatrix(t *testing.T) {
	names := map[string]bool{}
	for _, s := range All() {
		if names[s.Name] {
			t.Errorf("scenario %q is there twice", s.Name)
		}
		names[s.Name] = true
	}
	cells := Matrix()
	if want := (len(mutations()) + 1) * len(rows); len(cells) != want {
		t.Errorf("%d cells, want %d", len(cells), want)
	}
	ownParty := map[string]bool{}
	for _, p := range rows {
		ownParty[p.Name] = p.answers != nil
	}
	for _, c := range cells {
		switch {
		case c.Scenario != "" && !names[c.Scenario]:
			t.Errorf("%s, %s: there is no scenario %q", c.Mutation, c.Party, c.Scenario)
		case !c.Accepted && (c.Scenario == "" || c.Status == 0):
			t.Errorf("%s, %s: refused, and nobody proves it or says how", c.Mutation, c.Party)
		case !c.Accepted && ownParty[c.Party] && c.Reason == "" && c.Text == "":
			t.Errorf("%s, %s: the lab's own party gives no reason", c.Mutation, c.Party)
		}
	}
}
