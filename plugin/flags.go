package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envName is the environment's twin of a flag: PORTOLAN_LOG_LEVEL for
// log-level. `docker plugin set` can reach a managed plugin's environment, and
// nothing else of it.
func envName(flag string) string {
	return "PORTOLAN_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnv sets the flags that the command line left out and the environment
// has. An empty variable counts as none: a managed plugin's settings are empty
// until somebody sets them.
func fromEnv(cmd *cobra.Command) error {
	var err error
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		text := os.Getenv(envName(f.Name))
		if err != nil || text == "" || f.Changed || f.Name == "help" {
			return
		}
		if e := cmd.Flags().Set(f.Name, text); e != nil {
			err = usageError{fmt.Errorf("%s in the environment: %w", envName(f.Name), e)}
		}
	})
	return err
}

// nameEnv adds to each flag's help what it is called in the environment.
func nameEnv(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		f.Usage += " [" + envName(f.Name) + "]"
	})
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }

func (c *choice) Type() string { return strings.Join(c.allowed, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}
