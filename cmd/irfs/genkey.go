package main

import "irfs/sign"

func runGenKey(c *command, args []string) error {
	flags := newFlags(c)
	output := flags.StringP("output", "o", "", "the `file` for the private key; it must not be there yet")
	if err := c.parse(flags, args, 0, 0, "output"); err != nil {
		return err
	}
	key, err := sign.GenerateKey()
	if err != nil {
		return err
	}
	return writeNew(*output, key.DER(), 0o600)
}
