package main

import (
	"errors"
	"syscall"

	irfs "irfs/fs"
)

func runUmount(c *command, args []string) error {
	flags := newFlags(c)
	if err := c.parse(flags, args, 1, 1); err != nil {
		return err
	}
	err := irfs.Unmount(flags.Arg(0), false)
	if errors.Is(err, syscall.EBUSY) {
		return &irfs.Hint{Err: err, Text: "somebody uses it: fuser -vm " + flags.Arg(0) + " tells who"}
	}
	return err
}
