package cli

import "github.com/spf13/cobra"

func (a *app) scenariosCommand() *cobra.Command { return group("scenarios", "List and run scenarios") }
