package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	irfs "irfs/fs"
	"irfs/layout"
)

// interruptible gives a context that ends with Ctrl-C.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

func runImport(c *command, args []string) error {
	flags := newFlags(c)
	registry := flags.StringP("registry", "r", "", "the registry's `directory`")
	app := flags.StringP("app", "a", "", "the `app` to make (default: the file's name without .tar)")
	onExist := flags.String("on-exist", "add", "`how` to deal with an app that is there: add new tags to it, or fail")
	if err := c.parse(flags, args, 1, 1, "registry"); err != nil {
		return err
	}
	file := flags.Arg(0)
	if file == "-" && *app == "" {
		return &usageError{c, "-a APP is missing: standard input has no name to take"}
	}
	mode, err := layout.ParseOnExist(*onExist)
	if err != nil {
		return &usageError{c, "--on-exist " + err.Error()}
	}
	ctx, stop := interruptible()
	defer stop()
	reg, err := layout.Open(*registry)
	if err != nil {
		return err
	}
	staged, err := stage(ctx, reg, file)
	if err != nil {
		return err
	}
	defer staged.Discard()
	return publish(ctx, staged, appName(*app, file), mode)
}

// stage takes in an archive from a file, or from standard input ("-").
func stage(ctx context.Context, reg *layout.Registry, file string) (*layout.Staged, error) {
	var archive io.Reader = os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		archive = f
	}
	staged, err := reg.Stage(ctx, archive, layout.Owner{UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return staged, nil
}

func appName(app, file string) string {
	if app != "" {
		return app
	}
	return irfs.AppOf(filepath.Base(file))
}

func publish(ctx context.Context, staged *layout.Staged, app string, mode layout.OnExist) error {
	list, err := staged.Publish(ctx, app, mode)
	if err != nil {
		return err
	}
	for _, i := range list {
		fmt.Printf("%s\t%s\t%s\n", irfs.Field(i.App), irfs.Field(i.Tag), i.Digest)
	}
	return nil
}
