package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of command, shim and daemon",
		Args:  cobra.NoArgs,
	}
	socket := addSocketFlag(cmd)
	paths := cmd.Flags().Bool("features", false, "also show which way traffic takes, and why")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "command  %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		if v, err := (&client{socket: defaultShim, http: socketClient(defaultShim)}).version(cmd.Context()); err == nil {
			defer tellSkew(out, "shim", v.Version)
			fmt.Fprintf(out, "shim     %s at %s\n", v.Version, defaultShim)
		}
		c, err := findDaemon(cmd.Context(), *socket)
		if errors.Is(err, errNoDaemon) {
			fmt.Fprintf(out, "daemon   %v\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		v, err := c.version(cmd.Context())
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "daemon   %s at %s\n", v.Version, c.socket)
		if kind := v.Info["mapper"]; kind != "" {
			fmt.Fprintf(out, "mapper   %s: %s\n", kind, v.Info["reason"])
		}
		if *paths && v.Info["hooks"] != "" {
			for _, line := range features(v.Info) {
				fmt.Fprintln(out, line)
			}
		}
		tellSkew(out, "daemon", v.Version)
		return nil
	}
	return cmd
}

func tellSkew(out io.Writer, what, other string) {
	if other != version {
		fmt.Fprintf(out, "The command is %s and the %s %s: install the same version of both.\n", version, what, other)
	}
}
