package layout_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"irfs/layout"
)

func foundIn(t testing.TB, reg *layout.Registry) map[string]layout.Found {
	found, err := reg.Apps()
	if err != nil {
		t.Error(err)
	}
	all := map[string]layout.Found{}
	for _, f := range found {
		all[f.Name] = f
	}
	return all
}

// What cannot be read, or is too deep, is named; it hides no other app.
func TestAppsBesideWhatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	deep := strings.Repeat("d/", 32) + "d" // 33 directories
	for _, name := range []string{"a", "closed", "half", "locked", "z", deep} {
		must(t, small().WriteDir(filepath.Join(dir, name)))
	}
	must(t, os.Symlink("a", dir+"/link"))
	must(t, os.Symlink("nowhere", dir+"/broken"))
	for name, mode := range map[string]os.FileMode{"closed": 0, "half": 0o444, "locked": 0o111} {
		must(t, os.Chmod(filepath.Join(dir, name), mode))
		t.Cleanup(func() { os.Chmod(filepath.Join(dir, name), 0o755) })
	}
	reg := registry(t, dir)
	check := func(wanted map[string]string) {
		all := foundIn(t, reg)
		for name, why := range wanted {
			f, ok := all[name]
			if !ok || f.App != (why == "") || f.Shown != (why == "") || !strings.Contains(f.Why, why) {
				t.Errorf("%s: %+v; want %q", name, f, why)
			}
		}
		if len(all) != len(wanted) {
			t.Errorf("found %q", slices.Sorted(maps.Keys(all)))
		}
	}
	const link, denied = "a symbolic link, which is not followed", "permission denied"
	everyone := map[string]string{"a": "", "z": "", "link": link, "broken": link, deep: "over 32 directories deep"}
	if os.Getuid() == 0 {
		root := maps.Clone(everyone)
		root["closed"], root["half"], root["locked"] = "", "", ""
		check(root)
	}
	everyone["closed"], everyone["half"], everyone["locked"] = denied, denied, denied
	if os.Getuid() != 0 {
		check(everyone)
		return
	}
	as(t, 64001, 64001, func() { check(everyone) })
}
