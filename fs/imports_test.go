package fs_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestImportsGoOneWay holds the house in order: cmd → fs → sign → layout, each
// may use what stands to its right, never to its left.
func TestImportsGoOneWay(t *testing.T) {
	order := []string{"cmd/irfs", "fs", "sign", "layout"}
	seen := 0
	for i, pkg := range order {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files (%v)", pkg, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				name := strings.Trim(spec.Path.Value, `"`)
				rest, ours := strings.CutPrefix(name, "irfs/")
				if !ours {
					if strings.Contains(name, "go-fuse") && pkg != "fs" {
						t.Errorf("%s imports %s: FUSE belongs to fs", file, name)
					}
					continue
				}
				seen++
				if to := slices.Index(order, strings.TrimSuffix(rest, "/sample")); to <= i {
					t.Errorf("%s imports %s, which stands to its left", file, name)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no import of a package of this module was seen")
	}
}
