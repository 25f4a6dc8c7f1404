package fs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"irfs/layout"
	"irfs/sign"
)

// A Row is one image of a registry, an index in which nothing counts, or an app of which every word is `corrupt` for one reason.
type Row struct {
	Ref string `json:"ref"` // a tag that leads to it, cut to layout.MaxName bytes (layout.Cut); "" for none
	sign.Report
}

// JSON gives the row as one line: ref, and what status.json has, or status-full.json.
func (r Row) JSON() []byte { return sign.JSONLine(r) }

// An Overview is what there is in a registry.
type Overview struct {
	Rows   []Row          // sorted by app and tag
	Apps   int            // how many were looked at
	Hidden []layout.Found // what a mount does not show
}

// Worst is the worst word of all images. Artifacts that are intact do not count: nobody signs them.
func (o *Overview) Worst() sign.Status {
	worst := sign.Verified
	for _, r := range o.Rows {
		intact := r.Kind == string(layout.KindArtifact) && r.Status == sign.Unsigned
		if !intact && r.Status.Worse(worst) {
			worst = r.Status
		}
	}
	return worst
}

// Check returns nil if all that a program could run out of the registry was looked at, and there was something;
// otherwise an error that names what was not.
func (o *Overview) Check() error {
	var missed []string
	for _, f := range o.Hidden {
		if f.App || f.Unread {
			missed = append(missed, fmt.Sprintf("%s (%s)", Field(f.Name), Field(f.Why)))
		}
	}
	const few = 3
	switch {
	case len(missed) > few:
		missed = append(missed[:few], fmt.Sprintf("%d more", len(missed)-few))
		fallthrough
	case len(missed) > 0:
		return hint("rename or remove apps that are hidden, have directories in the place of links, and run this as a user who may read all of it",
			"not everything was checked: %s", strings.Join(missed, ", "))
	case o.Apps == 0:
		return hint("see that this is the right directory", "there is no app in this registry, so nothing was checked")
	case len(o.Rows) == 0:
		return hint("see that this is the right directory", "there is no image in this registry, so nothing was checked")
	}
	return nil
}

// Status gives a Row for every image of the registry, and for every tag of an index in which nothing counts; with
// full, every layer is read. The overview is there with the error too, which is of some of the apps.
func (t *Tree) Status(ctx context.Context, full bool) (*Overview, error) {
	apps, err := t.Registry.Apps()
	if err != nil {
		return nil, err
	}
	o := &Overview{}
	var failed []error // one app's trouble does not hide the others
	for _, found := range apps {
		if !found.Shown {
			o.Hidden = append(o.Hidden, found)
			continue
		}
		rows, err := t.appStatus(ctx, found.Name, full)
		if err != nil && errors.Is(absent(err), errAbsent) { // gone meanwhile
			continue
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", Field(found.Name), err))
		}
		o.Rows = append(o.Rows, rows...)
		o.Apps++
	}
	const few = 20
	if more := len(failed) - few; more > 0 {
		failed = append(failed[:few], fmt.Errorf("and %d more apps could not be read", more))
	}
	return o, errors.Join(failed...)
}

func (t *Tree) appStatus(ctx context.Context, name string, full bool) ([]Row, error) {
	app, snap, err := t.Registry.Look(ctx, name)
	if err != nil {
		return nil, err
	}
	if fault, err := snap.Fault(ctx); err != nil {
		return nil, err
	} else if fault != nil {
		return []Row{{"", sign.BrokenApp(name, fault)}}, nil
	}
	var rows []Row
	add := func(ref string, e layout.Entry) error {
		before := len(rows)
		images, err := snap.Images(ctx, e)
		if errors.Is(err, layout.ErrCorrupt) {
			images = []layout.Entry{e}
		} else if err != nil {
			return err
		}
		for _, image := range images {
			v, err := t.Verifier.Verify(ctx, app, snap, image, full)
			if err != nil {
				return err
			}
			if v.Kind == layout.KindAttestation || v.Missing && layout.IsIndex(e.MediaType) && image.Digest != e.Digest {
				continue
			}
			rows = append(rows, Row{layout.Cut(ref, layout.MaxName), v.Report(app, snap, image)})
		}
		if ref == "" || !layout.IsIndex(e.MediaType) || len(rows) > before {
			return nil
		}
		v, err := t.Verifier.Verify(ctx, app, snap, e, full) // an index in which nothing counts
		if err == nil {
			rows = append(rows, Row{layout.Cut(ref, layout.MaxName), v.Report(app, snap, e)})
		}
		return err
	}
	for _, tag := range snap.Tags() {
		e, err := snap.Tag(ctx, tag)
		if err == nil {
			err = add(tag, e)
		}
		if err != nil {
			return nil, err
		}
	}
	top, err := snap.Top(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		if len(snap.TagsOf(e.Digest)) == 0 {
			if err := add("", e); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}
