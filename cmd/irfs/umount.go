package main

import (
	"errors"
	"syscall"

	irfs "irfs/fs"
)

func runUmount(c *command, args []string) error {
	flags := newFlags(c)
	lazy := flags.BoolP("lazy", "l", false, "take it out of sight at once, even if somebody uses it")
	if err := c.parse(flags, args, 1, 1); err != nil {
		return err
	}
	dir := flags.Arg(0)
	if err := irfs.IsMount(dir); err != nil {
		return err
	}
	err := irfs.Unmount(dir, *lazy)
	if errors.Is(err, syscall.EBUSY) {
		return &irfs.Hint{Err: err, Text: "somebody uses it: fuser -vm " + dir + " tells who; irfs umount -l does it all the same"}
	}
	return err
}
