package main

func runExtractPublic(c *command, args []string) error {
	flags := newFlags(c)
	input := flags.StringP("input", "i", "", "the `file` with the private key")
	output := flags.StringP("output", "o", "", "the `file` for the public key")
	if err := c.parse(flags, args, 0, 0, "input", "output"); err != nil {
		return err
	}
	key, err := readPrivate(*input)
	if err != nil {
		return err
	}
	if err := differ(*input, *output); err != nil {
		return err
	}
	return writeFile(*output, key.Public().DER())
}
