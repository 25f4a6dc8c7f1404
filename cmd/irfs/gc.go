package main

import (
	"errors"
	"fmt"
	"time"

	"irfs/layout"
)

func runGC(c *command, args []string) error {
	flags := newFlags(c)
	registry := flags.StringP("registry", "r", "", "the registry's `directory`")
	only := flags.StringP("app", "a", "", "this `app` only")
	grace := flags.Duration("grace", 14*24*time.Hour, "keep what was written to within this `time`")
	dryRun := flags.Bool("dry-run", false, "only tell what would be removed")
	if err := c.parse(flags, args, 0, 0, "registry"); err != nil {
		return err
	}
	if *grace < 0 {
		return &usageError{c, "--grace cannot be negative"}
	}
	ctx, stop := interruptible()
	defer stop()
	reg, err := layout.Open(*registry)
	if err != nil {
		return err
	}
	apps := []layout.Found{{Name: *only, App: true}}
	if *only == "" {
		if apps, err = reg.Apps(); err != nil {
			return err
		}
	}
	var failed []error
	for _, found := range apps {
		if !found.App {
			warn("%s is passed over: %s", found.Name, found.Why)
			continue
		}
		app, err := reg.App(found.Name)
		if err == nil {
			var removed []layout.Removed
			removed, err = app.Collect(ctx, *grace, *dryRun)
			for _, r := range removed {
				fmt.Printf("%s\t%s\t%d\n", found.Name, r.Digest, r.Size)
			}
		}
		if err != nil && !(errors.Is(err, layout.ErrNotFound) && *only == "") {
			failed = append(failed, err) // the other apps are collected all the same
		}
	}
	return errors.Join(failed...)
}
