package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	irfs "irfs/fs"
	"irfs/sign"
)

func runStatus(c *command, args []string) error {
	flags := newFlags(c)
	var at treeFlags
	at.add(flags)
	full := flags.Bool("full", false, "check every layer, too")
	asJSON := flags.Bool("json", false, "print a line of JSON for each image: status.json, with --full status-full.json")
	only := flags.StringSlice("only", nil, "print images of these status `words` only")
	check := flags.Bool("check", false, "end with the exit code of the worst word; with 1 if there is no app, or not everything could be checked")
	if err := c.parse(flags, args, 0, 1); err != nil {
		return err
	}
	for _, word := range *only {
		if _, ok := exitCodes[sign.Status(word)]; !ok {
			return &usageError{c, fmt.Sprintf("--only %s: the status words are %v", word, sign.Statuses())}
		}
	}
	if (at.registry == "") == (flags.NArg() == 0) {
		return &usageError{c, "give -r REGISTRY, or a mount point"}
	}
	if mnt := flags.Arg(0); mnt != "" {
		if err := at.ofMount(mnt); err != nil {
			return err
		}
	}
	tree, err := at.tree()
	if err != nil {
		return err
	}
	if at.directory != "" && tree.Registry.ID() != at.directory {
		return &irfs.Hint{Err: fmt.Errorf("%s is another directory by now than the one that is mounted on %s", at.registry, flags.Arg(0)), Text: "unmount it, and mount it again"}
	}
	if tree.Registry.IsApp() {
		return &irfs.Hint{Err: fmt.Errorf("%s is an app: give the registry's directory", at.registry), Text: "-r " + filepath.Join(at.registry, "..")}
	}
	ctx, stop := interruptible()
	defer stop()
	o, err := tree.Status(ctx, *full)
	if o == nil {
		return err
	}
	for _, f := range o.Hidden {
		warn("%s is not shown: %s", irfs.Field(f.Name), f.Why)
	}
	rows := o.Rows
	if len(*only) > 0 {
		rows = slices.DeleteFunc(slices.Clone(rows), func(r irfs.Row) bool { return !slices.Contains(*only, string(r.Status)) })
	}
	if err := print(rows, *asJSON); err != nil {
		return err
	}
	switch worst := o.Worst(); {
	case *check && worst != sign.Verified:
		for _, one := range apart(err) {
			warn("%v", one)
		}
		return exit(exitCodes[worst])
	case err != nil:
		return err
	case *check:
		return o.Check()
	case o.Apps == 0:
		warn("there is no app in %s", at.registry)
	}
	return nil
}

// ofMount takes the registry and the root CAs from a mount.
func (t *treeFlags) ofMount(mnt string) error {
	text, err := readFound(filepath.Join(mnt, ".irfs/version"))
	if err != nil {
		return &irfs.Hint{Err: fmt.Errorf("%s: not a mount of irfs", mnt), Text: "for a registry give -r " + mnt}
	}
	for line := range strings.Lines(string(text)) {
		if registry, ok := strings.CutPrefix(line, "registry "); ok {
			if t.registry, err = irfs.NameOf(strings.TrimSuffix(registry, "\n")); err != nil {
				return fmt.Errorf("%s: its .irfs/version: %w", mnt, err)
			}
		}
		if directory, ok := strings.CutPrefix(line, "directory "); ok {
			t.directory = strings.TrimSuffix(directory, "\n")
		}
	}
	if t.registry == "" || t.directory == "" {
		return fmt.Errorf("%s: its .irfs/version names no registry", mnt)
	}
	cas := filepath.Join(mnt, ".irfs/ca")
	files, err := keysIn(cas)
	if len(files) > 0 {
		t.cas = append(t.cas, cas)
	}
	return err
}

func print(rows []irfs.Row, asJSON bool) error {
	if asJSON {
		for _, r := range rows {
			if _, err := os.Stdout.Write(r.JSON()); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if term.IsTerminal(int(os.Stdout.Fd())) {
		fmt.Fprintln(w, "STATUS\tAPP\tREF\tPLATFORM\tDIGEST\tVENDOR")
	}
	for _, r := range rows {
		line := strings.Join([]string{string(r.Status), irfs.Field(r.App), field(r.Ref), field(r.Platform), field(r.Digest), field(r.Vendor)}, "\t") + "\n"
		var err error
		if term.IsTerminal(int(os.Stdout.Fd())) {
			_, err = fmt.Fprint(w, line)
		} else {
			_, err = os.Stdout.WriteString(line)
		}
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

// field is a field of a line, "-" for an empty one.
func field(s string) string {
	if s == "" {
		return "-"
	}
	return irfs.Field(s)
}
