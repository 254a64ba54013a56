package lab

import (
	"context"
	"os"

	"github.com/oidclab/oidclab/lab/proc"
)

// Status returns the state of the lab now. It asks every component, for as
// long as ctx allows.
func (l *Lab) Status(ctx context.Context) Status {
	status := Status{Info: l.info, PID: os.Getpid(), Since: l.since, Clock: l.Clock.State(), Rotations: map[string]Rotation{}}
	complain := func(err error) {
		if err != nil {
			status.Problems = append(status.Problems, err.Error())
		}
	}
	for _, m := range l.members {
		err := m.cluster.Healthy(ctx)
		if err == nil {
			err = l.checkWebhook(ctx, m)
		}
		complain(err)
		if processes, ok := m.cluster.(interface{ Components() []proc.Status }); ok {
			status.Components = append(status.Components, named(m.id, processes.Components())...)
		}
		for _, p := range l.parties {
			status.Caches = append(status.Caches, PartyCache{Party: p.name, Policy: p.cache.Name, State: p.keys(m.issuer)})
		}
		if m.rotating.TryLock() { // otherwise a phase is under way
			if m.rotation != nil {
				status.Rotations[m.id] = *m.rotation
			}
			m.rotating.Unlock()
		}
	}
	complain(l.front.Ready(ctx))
	status.Egress = l.proxy.Refused()
	if l.vault != nil {
		complain(l.vault.Healthy(ctx))
		status.Components = append(status.Components, l.vault.Status())
	}
	status.Ready = len(status.Problems) == 0
	return status
}

func named(cluster string, components []proc.Status) []proc.Status {
	for i := range components {
		components[i].Name = cluster + "/" + components[i].Name
	}
	return components
}
