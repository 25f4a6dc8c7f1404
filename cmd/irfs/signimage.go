package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"irfs/layout"
	"irfs/sign"
)

func runSignImage(c *command, args []string) error {
	flags := newFlags(c)
	var image imageFlags
	image.add(flags)
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
	app, err := image.open()
	if err != nil {
		return err
	}
	signer, err := keys.signer()
	if err != nil {
		return err
	}
	outcome, err := signer.Sign(ctx, app, resolve(ctx, image.reference))
	if err != nil {
		return err
	}
	for _, s := range outcome.Images {
		fmt.Printf("signed %s -> %s\n", s.Old, s.New)
	}
	warnOf(outcome)
	return nil
}

// warnOf tells what a signing left as it was.
func warnOf(outcome *sign.Outcome) {
	for _, out := range outcome.LeftOut {
		warn("not signed: %s", out)
	}
	for _, doubt := range outcome.Doubts {
		warn("verify-full will say corrupt: %s", doubt)
	}
	for _, left := range outcome.Change.LeftBehind {
		warn("left behind: %s", left)
	}
}

// imageFlags are the flags that name an image.
type imageFlags struct{ registry, app, reference string }

func (i *imageFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&i.registry, "registry", "r", "", "the registry's `directory`")
	flags.StringVarP(&i.app, "app", "a", "", "the `app`")
	flags.StringVarP(&i.reference, "reference", "d", "", "the `reference`: a tag or a digest")
}

func (i *imageFlags) open() (*layout.App, error) {
	reg, err := layout.Open(i.registry)
	if err != nil {
		return nil, err
	}
	return reg.App(i.app)
}

// resolve picks the one image or index that a reference names.
func resolve(ctx context.Context, reference string) func(*layout.Snapshot) ([]layout.Entry, error) {
	return func(snap *layout.Snapshot) ([]layout.Entry, error) {
		e, err := snap.Resolve(ctx, reference)
		return []layout.Entry{e}, err
	}
}
