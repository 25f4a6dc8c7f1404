package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	irfs "irfs/fs"
	"irfs/layout"
)

// treeFlags are the flags of the commands that show what a mount would show.
type treeFlags struct {
	registry  string
	directory string // which one that has to be, or ""
	cas       []string
}

func (t *treeFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&t.registry, "registry", "r", "", "the registry's `directory`")
	flags.StringArrayVarP(&t.cas, "ca-pub", "c", nil, "a root CA's public `key` (or a directory of *.pub; may be repeated)")
}

func (t *treeFlags) tree() (*irfs.Tree, error) {
	trust, err := readTrust(t.cas)
	if err != nil {
		return nil, err
	}
	reg, err := layout.Open(t.registry)
	if err != nil {
		return nil, err
	}
	return irfs.NewTree(reg, trust), nil
}

func runLs(c *command, args []string) error {
	flags := newFlags(c)
	var at treeFlags
	at.add(flags)
	if err := c.parse(flags, args, 0, 1, "registry"); err != nil {
		return err
	}
	tree, err := at.tree()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	names, err := tree.List(ctx, flags.Arg(0))
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, err := fmt.Println(irfs.Line(n.Name)); err != nil {
			return err
		}
	}
	return nil
}

func runCat(c *command, args []string) error {
	flags := newFlags(c)
	var at treeFlags
	at.add(flags)
	if err := c.parse(flags, args, 1, 1<<20, "registry"); err != nil {
		return err
	}
	tree, err := at.tree()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	for _, name := range flags.Args() {
		data, blob, err := tree.Read(ctx, name)
		if err != nil {
			return err
		}
		if blob == nil {
			_, err = os.Stdout.Write(data)
		} else {
			_, err = io.Copy(os.Stdout, io.NewSectionReader(blob, 0, blob.Attr.Size))
			blob.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
