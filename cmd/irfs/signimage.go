package main

import (
	"fmt"

	"irfs/layout"
)

func runSignImage(c *command, args []string) error {
	flags := newFlags(c)
	registry := flags.StringP("registry", "r", "", "the registry's `directory`")
	name := flags.StringP("app", "a", "", "the `app`")
	reference := flags.StringP("reference", "d", "", "a tag or `digest`")
	var keys signerFlags
	keys.add(flags)
	if err := c.parse(flags, args, 0, 0, "registry", "app", "reference", "vendor-prv"); err != nil {
		return err
	}
	if err := keys.check(c); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	reg, err := openRegistry(*registry)
	if err != nil {
		return err
	}
	app, err := reg.App(*name)
	if err != nil {
		return err
	}
	signer, err := keys.signer()
	if err != nil {
		return err
	}
	outcome, err := signer.Sign(ctx, app, resolve(*reference))
	if err != nil {
		return err
	}
	for _, s := range outcome.Images {
		fmt.Printf("signed %s -> %s\n", s.Old, s.New)
	}
	for _, left := range outcome.Change.LeftBehind {
		warn("left behind: %s", left)
	}
	return nil
}

// resolve picks the one image or index that a reference names.
func resolve(reference string) func(*layout.Snapshot) ([]layout.Entry, error) {
	return func(snap *layout.Snapshot) ([]layout.Entry, error) {
		e, err := snap.Resolve(reference)
		return []layout.Entry{e}, err
	}
}
