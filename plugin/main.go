// Command portolan is a Docker network driver that publishes container ports,
// and the command line that shows what it has published.
//
// `portolan daemon` is the driver. Every other command is a client of it, over
// the unix socket on which it serves the engine. Under the name portolan-proxy
// the program is a docker-proxy.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the Makefile, from git describe.
var version = "dev"

func main() {
	if filepath.Base(os.Args[0]) == proxyName {
		os.Exit(runProxy(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for its end. It returns the exit status: 1 when
// the command could not do what it was asked, 2 when it was not understood.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	// One line, also of several errors that errors.Join puts on lines.
	fmt.Fprintf(stderr, "%s: %s\n", cmd.CommandPath(), oneLine(err))
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(stderr, "Run '%s --help' for its arguments and flags.\n", cmd.CommandPath())
		return 2
	}
	return 1
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// usageError is a command line that was not understood. Nothing has been done.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "portolan",
		Short: "Publish the ports of Docker containers, in ranges of any size",
		Long: `Portolan is a Docker network driver that publishes container ports.
"portolan daemon" is the driver; the other commands show what it publishes.

Every flag can be given in the environment too: PORTOLAN_SOCKET for --socket.`,
		Args:              noCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnv(cmd) },
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SuggestionsMinimumDistance = 2 // letters
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newDaemonCommand(),
		newListCommand(),
		newInspectCommand(),
		newStatusCommand(),
		newShimCommand(),
		newInstallShimCommand(),
		newCleanupCommand(),
		newVersionCommand(),
	)
	for _, cmd := range root.Commands() {
		cmd.Args = asUsageError(cmd.Args)
		nameEnv(cmd)
	}
	return root
}

// noCommand refuses a command that does not exist and names those that look
// like it.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	for i, s := range cmd.SuggestionsFor(args[0]) {
		if i == 0 {
			text += "; did you mean " + s
		} else {
			text += " or " + s
		}
	}
	return usageError{errors.New(text)}
}

func asUsageError(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
