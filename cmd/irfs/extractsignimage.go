package main

import (
	"context"

	"irfs/layout"
	"irfs/sign"
)

func runExtractSignImage(c *command, args []string) error {
	flags := newFlags(c)
	registry := flags.StringP("registry", "r", "", "the registry's `directory`")
	file := flags.StringP("filename", "f", "", "the image `archive` (tar), or - for standard input")
	flags.StringVar(file, "file", "", "the same as --filename")
	flags.MarkHidden("file")
	app := flags.StringP("app", "a", "", "the `app` to make (default: the file's name without .tar)")
	reference := flags.StringP("reference", "d", "", "the `reference`, a tag or a digest (default: sign everything in the archive)")
	onExist := flags.String("on-exist", "add", "`how` to deal with an app that is there: add new tags to it, or fail")
	var keys signerFlags
	keys.add(flags)
	if err := c.parse(flags, args, 0, 0, "registry", "vendor-prv"); err != nil {
		return err
	}
	if err := keys.check(c); err != nil {
		return err
	}
	if *file == "" {
		return &usageError{c, "-f (--filename) is missing: the image archive"}
	}
	if *file == "-" && *app == "" {
		return &usageError{c, "-a APP is missing: standard input has no name to take"}
	}
	mode, err := layout.ParseOnExist(*onExist)
	if err != nil {
		return &usageError{c, "--on-exist " + err.Error()}
	}
	ctx, stop := interruptible()
	defer stop()
	// The keys first: they are read faster than the archive.
	signer, err := keys.signer()
	if err != nil {
		return err
	}
	reg, err := layout.Open(*registry)
	if err != nil {
		return err
	}
	staged, err := stage(ctx, reg, *file)
	if err != nil {
		return err
	}
	defer staged.Discard()
	if err := signStaged(ctx, signer, staged, *reference); err != nil {
		return err
	}
	return publish(ctx, staged, appName(*app, *file), mode)
}

// signStaged signs what a reference names, or everything that can be signed.
func signStaged(ctx context.Context, signer *sign.Signer, staged *layout.Staged, reference string) error {
	pick := resolve(reference)
	if reference == "" {
		pick = func(snap *layout.Snapshot) ([]layout.Entry, error) {
			return sign.Signable(snap)
		}
	}
	outcome, err := signer.Sign(ctx, staged.App, pick)
	if err != nil {
		return err
	}
	warnOf(outcome)
	_, err = staged.App.Collect(ctx, 0, false) // the unsigned manifests
	return err
}
