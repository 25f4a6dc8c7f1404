package main

import "fmt"

func runExtractSignImage(c *command, args []string) error {
	flags := newFlags(c)
	var archive archiveFlags
	flags.StringVarP(&archive.file, "filename", "f", "", "the image `archive`, or - for standard input")
	flags.StringVar(&archive.file, "file", "", "the same as --filename")
	flags.MarkHidden("file")
	archive.add(flags)
	reference := flags.StringP("reference", "d", "", "the `reference`, a tag or a digest, of what is signed and taken in (default: everything that can be signed)")
	var keys signerFlags
	keys.add(flags)
	if err := c.parse(flags, args, 0, 0, "registry", "vendor-prv"); err != nil {
		return err
	}
	if err := keys.check(c); err != nil {
		return err
	}
	if archive.file == "" {
		return &usageError{c, "-f (--filename) is missing: the image archive"}
	}
	if err := archive.check(c); err != nil {
		return err
	}
	// The keys first: they are read faster than the archive.
	signer, err := keys.signer()
	if err != nil {
		return err
	}
	if err := archive.open(); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	staged, err := archive.stage(ctx)
	if err != nil {
		return err
	}
	defer staged.Discard()
	outcome, err := signer.SignStaged(ctx, staged, *reference)
	if err != nil {
		return fmt.Errorf("%s: %w", archive.file, err)
	}
	warnOf(outcome)
	return archive.publish(ctx, staged)
}
