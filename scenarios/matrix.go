package scenarios

// Cell is how one relying party answers to one mutation of a good token.
type Cell struct {
	Mutation string `json:"mutation"` // what is wrong with the token; "nothing" is the control
	Party    string `json:"party"`
	Accepted bool   `json:"accepted"`         // the party rightly takes the token
	Reason   string `json:"reason,omitempty"` // in the trace; empty of parties that are not the lab's own
	Status   int    `json:"status,omitempty"` // of HTTP
	Code     string `json:"code,omitempty"`   // the vendor's
	Text     string `json:"text,omitempty"`   // part of the vendor's message
	Scenario string `json:"scenario,omitempty"`
}

// Matrix returns every mutation at every party, mutation by mutation: what the
// scenarios prove, from the same data.
func Matrix() []Cell {
	var cells []Cell
	for _, p := range rows {
		cells = append(cells, Cell{Mutation: "nothing", Party: p.Name, Accepted: true, Scenario: journeyOf(p)})
	}
	for _, m := range mutations() {
		for _, p := range rows {
			e, refused := m.expected(p)
			cell := Cell{Mutation: m.name, Party: p.Name, Accepted: !refused}
			if refused {
				cell.Reason, cell.Status, cell.Code, cell.Text, cell.Scenario = string(e.Reason), e.Status, e.Code, e.Text, refusalOf(m, p)
			}
			cells = append(cells, cell)
		}
	}
	return cells
}
