package main

import "os"

func runSign(c *command, args []string) error {
	flags := newFlags(c)
	key := flags.StringP("key", "k", "", "the private `key`")
	file := flags.StringP("file", "f", "", "the `file` to sign")
	signature := flags.StringP("signature", "s", "", "the `file` for the signature")
	if err := c.parse(flags, args, 0, 0, "key", "file", "signature"); err != nil {
		return err
	}
	for _, input := range []string{*key, *file} {
		if err := differ(input, *signature); err != nil {
			return err
		}
	}
	private, err := readPrivate(*key)
	if err != nil {
		return err
	}
	f, err := os.Open(*file)
	if err != nil {
		return err
	}
	defer f.Close()
	sig, err := private.SignReader(f)
	if err != nil {
		return err
	}
	return writeFile(*signature, sig)
}
