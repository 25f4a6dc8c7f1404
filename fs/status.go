package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"irfs/layout"
	"irfs/sign"
)

// A Row is one image of a registry, or an app whose index.json cannot be used.
type Row struct {
	Ref string `json:"ref"` // a tag that leads to it, "" for none
	sign.Report
}

// JSON gives the row as one line: ref, and what status.json has.
func (r Row) JSON() []byte {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // there is nothing in it but strings
	}
	return append(text, '\n')
}

// Status gives a Row for every image of the registry, sorted by app and tag; with
// full, every layer is read. hidden is told of what a mount does not show, and
// why. The rows are there with the error too, which is of other apps.
func (t *Tree) Status(ctx context.Context, full bool, hidden func(layout.Found)) ([]Row, error) {
	apps, err := t.Registry.Apps()
	if err != nil {
		return nil, err
	}
	var rows []Row
	var failed []error // one app's trouble does not hide the others
	for _, found := range apps {
		if !found.Shown {
			hidden(found)
			continue
		}
		more, err := t.appStatus(ctx, found.Name, full)
		if err != nil && errors.Is(absent(err), errAbsent) { // gone meanwhile
			continue
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", Field(found.Name), err))
		}
		rows = append(rows, more...)
	}
	return rows, errors.Join(failed...)
}

func (t *Tree) appStatus(ctx context.Context, name string, full bool) ([]Row, error) {
	app, snap, err := t.look(name)
	if err != nil {
		return nil, err
	}
	if snap.Err != nil {
		return []Row{{"", sign.BrokenApp(name, snap)}}, nil
	}
	var rows []Row
	add := func(ref string, e layout.Entry) error {
		images, err := snap.Images(e)
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
			rows = append(rows, Row{ref, v.Report(app, snap, image)})
		}
		return nil
	}
	for _, tag := range snap.Tags() {
		e, err := snap.Tag(tag)
		if err == nil {
			err = add(tag, e)
		}
		if err != nil {
			return nil, err
		}
	}
	top, err := snap.Top()
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
