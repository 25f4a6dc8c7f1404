package main

import (
	"fmt"
	"os"

	"irfs/sign"
)

// exitCodes are the exit codes of the status words.
var exitCodes = map[sign.Status]int{
	sign.Verified: 0, sign.Unsigned: 3, sign.Untrusted: 4, sign.Invalid: 5, sign.Corrupt: 6, sign.Unknown: 7,
}

func runVerifyImage(c *command, args []string) error {
	flags := newFlags(c)
	var image imageFlags
	image.add(flags)
	cas := flags.StringArrayP("ca-pub", "c", nil, "a root CA's public `key` (or a directory of *.pub; may be repeated)")
	full := flags.Bool("full", false, "check every layer, too")
	asJSON := flags.Bool("json", false, "print what status.json has, with --full status-full.json")
	if err := c.parse(flags, args, 0, 0, "registry", "app", "reference", "ca-pub"); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	trust, err := readTrust(*cas)
	if err != nil {
		return err
	}
	app, err := image.open()
	if err != nil {
		return err
	}
	snap, err := app.Snapshot(ctx)
	if err != nil {
		return err
	}
	if snap.Err != nil {
		if *asJSON {
			os.Stdout.Write(sign.BrokenApp(image.app, snap.Err).JSON())
		} else {
			fmt.Println(sign.Corrupt)
		}
		return &withCode{exitCodes[sign.Corrupt], fmt.Errorf("%s: %w", image.app, snap.Err)}
	}
	e, err := snap.Resolve(ctx, image.reference)
	if err != nil {
		return err
	}
	verdict, err := sign.NewVerifier(trust).Verify(ctx, app, snap, e, *full)
	if err != nil {
		return err
	}
	if *asJSON {
		os.Stdout.Write(verdict.Report(app, snap, e).JSON())
	} else {
		fmt.Println(verdict.Status)
	}
	if verdict.Status == sign.Verified {
		return nil
	}
	return &withCode{exitCodes[verdict.Status], fmt.Errorf("%s %s: %s", image.app, image.reference, verdict.Reason)}
}
