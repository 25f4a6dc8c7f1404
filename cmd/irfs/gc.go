package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	irfs "irfs/fs"
	"irfs/layout"
)

func runGC(c *command, args []string) error {
	flags := newFlags(c)
	registry := flags.StringP("registry", "r", "", "the registry's `directory`")
	only := flags.StringP("app", "a", "", "this `app` only")
	grace := grace{"14d", 14 * day}
	flags.Var(&grace, "grace", "keep what was written to within this `time`: 14d, 2w, 1d12h, 90m")
	dryRun := flags.Bool("dry-run", false, "only tell what would be removed")
	if err := c.parse(flags, args, 0, 0, "registry"); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	reg, err := layout.Open(*registry)
	if err != nil {
		return err
	}
	apps := []layout.Found{{Name: *only, App: true}}
	if *only == "" {
		if apps, err = reg.Apps(); err != nil {
			return err
		}
	}
	var failed []error
	for _, found := range apps {
		if !found.App {
			warn("%s is passed over: %s", irfs.Field(found.Name), found.Why)
			continue
		}
		app, err := reg.App(found.Name)
		if err == nil {
			var removed []layout.Removed
			var kept []layout.Kept
			removed, kept, err = app.Collect(ctx, grace.time, *dryRun)
			for _, r := range removed {
				fmt.Printf("%s\t%s\t%d\n", irfs.Field(found.Name), r.Digest, r.Size)
			}
			tellKept(found.Name, kept, grace.text)
		}
		if err != nil && !(errors.Is(err, layout.ErrNotFound) && *only == "") {
			failed = append(failed, err) // the other apps are collected all the same
		}
	}
	return errors.Join(failed...)
}

// tellKept says which blobs of an app are kept though no image or index uses them, and why: the first few of each kind, and how many more.
func tellKept(app string, kept []layout.Kept, grace string) {
	const few = 5
	var young, named, more int
	var bytes int64
	for _, k := range kept {
		why, count := "younger than "+grace, &young
		if k.By != "" {
			why, count = fmt.Sprintf("named by %s, which is no image or index that irfs knows", k.By), &named
		}
		if *count++; *count > few {
			more++
			bytes += k.Size
			continue
		}
		say("kept %s %s (%d bytes): %s", irfs.Field(app), k.Digest, k.Size, why)
	}
	if more > 0 {
		say("kept %s: %d more (%d bytes)", irfs.Field(app), more, bytes)
	}
}

const day = 24 * time.Hour

// A grace is a time that is given as for [time.ParseDuration], or with days and weeks in it: 14d, 2w, 1d12h.
type grace struct {
	text string
	time time.Duration
}

func (g *grace) String() string { return g.text }
func (g *grace) Type() string   { return "time" }

func (g *grace) Set(text string) error {
	t, err := parseGrace(text)
	if err == nil {
		*g = grace{text, t}
	}
	return err
}

var daysAndWeeks = regexp.MustCompile(`([0-9.]+)([dw])`)

func parseGrace(text string) (time.Duration, error) {
	if strings.HasPrefix(text, "-") {
		return 0, errors.New("it cannot be negative")
	}
	inHours := daysAndWeeks.ReplaceAllStringFunc(text, func(part string) string {
		n, err := strconv.ParseFloat(part[:len(part)-1], 64)
		if err != nil {
			return part // which is refused
		}
		hours := map[byte]float64{'d': 24, 'w': 7 * 24}[part[len(part)-1]]
		return strconv.FormatFloat(n*hours, 'f', -1, 64) + "h"
	})
	t, err := time.ParseDuration(inHours)
	if err != nil {
		return 0, errors.New("it is a time such as 14d, 2w, 1d12h or 90m")
	}
	return t, nil
}
