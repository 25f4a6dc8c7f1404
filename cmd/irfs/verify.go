package main

import (
	"errors"
	"fmt"
	"os"

	"irfs/sign"
)

func runVerify(c *command, args []string) error {
	flags := newFlags(c)
	key := flags.StringP("key", "k", "", "the public `key`")
	file := flags.StringP("file", "f", "", "the `file` that was signed")
	signature := flags.StringP("signature", "s", "", "the `file` with the signature")
	if err := c.parse(flags, args, 0, 0, "key", "file", "signature"); err != nil {
		return err
	}
	public, err := readPublic(*key, readSmall)
	if err != nil {
		return err
	}
	sig, err := readSmall(*signature)
	if err != nil {
		return err
	}
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	defer f.Close()
	err = public.VerifyReader(f, sig)
	if errors.Is(err, sign.ErrMismatch) || errors.Is(err, sign.ErrSignature) {
		return &withCode{exitCodes[sign.Invalid], fmt.Errorf("%s: %w", *signature, err)}
	}
	return err
}
