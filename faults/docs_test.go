package faults

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rows gives the cells of a document's table rows, but for headings.
func rows(t *testing.T, file string) [][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	var list [][]string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| --") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		list = append(list, cells)
	}
	return list
}

var quoted = regexp.MustCompile("`([^`]+)`")

// TestFaultsAreTested: each fault in docs/FAULTS.md has tests, and these are there.
func TestFaultsAreTested(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range rows(t, "../docs/FAULTS.md") {
		if len(row) != 3 || row[0] == "row" {
			continue
		}
		seen[row[0]] = true
		tests := quoted.FindAllStringSubmatch(row[2], -1)
		if len(tests) == 0 {
			t.Errorf("row %s: no test", row[0])
		}
		for _, test := range tests {
			if err := isTest(test[1]); err != nil {
				t.Errorf("row %s: %v", row[0], err)
			}
		}
	}
	for row := 1; row <= 73; row++ {
		if !seen[fmt.Sprint(row)] {
			t.Errorf("row %d is missing", row)
		}
	}
}

// isTest says whether there is such a test: a story (a.txtar), or a function (package.TestA, package.FuzzA)
// and maybe what it calls its sub-tests (package.TestA/b).
func isTest(name string) error {
	if strings.HasSuffix(name, ".txtar") {
		_, err := os.Stat("../testdata/script/" + name)
		return err
	}
	name, _, _ = strings.Cut(name, "/")
	dir, function, _ := strings.Cut(name, ".")
	if dir == "irfs" {
		dir = "cmd/irfs"
	}
	files, err := filepath.Glob("../" + dir + "/*_test.go")
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "\nfunc "+function+"(") {
			return nil
		}
	}
	return fmt.Errorf("there is no test %s", name)
}

// TestLimitsAreSaid: each limit in SECURITY.md is the constant's.
func TestLimitsAreSaid(t *testing.T) {
	constants := map[string]string{}
	for _, dir := range []string{"layout", "sign", "fs"} {
		for name, value := range constantsOf(t, dir) {
			constants[dir+"."+name] = value
		}
	}
	found := 0
	for _, row := range rows(t, "../SECURITY.md") {
		if len(row) != 4 || row[0] == "what" {
			continue
		}
		found++
		name := strings.Trim(row[2], "`")
		value, err := types.Eval(token.NewFileSet(), nil, token.NoPos, inUnits(row[1]))
		if err != nil {
			t.Errorf("%s: %q is no number: %v", row[0], row[1], err)
			continue
		}
		if got := value.Value.String(); got != constants[name] {
			t.Errorf("%s: the document says %s, and %s is %s", row[0], got, name, constants[name])
		}
	}
	if found < 20 {
		t.Errorf("only %d limits were found", found)
	}
}

// inUnits makes an expression of a quantity: 4 MiB, 100,000, 30 s.
func inUnits(text string) string {
	number, unit, _ := strings.Cut(strings.ReplaceAll(text, ",", ""), " ")
	return number + map[string]string{"KiB": " << 10", "MiB": " << 20", "TiB": " << 40", "s": " * 1000000000"}[unit]
}

// constantsOf gives the values of a package's constants that are plain numbers.
func constantsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	values := map[string]string{}
	files, err := filepath.Glob("../" + dir + "/*.go")
	must(t, err)
	for _, name := range slices.Sorted(slices.Values(files)) {
		set := token.NewFileSet()
		text, err := os.ReadFile(name)
		must(t, err)
		file, err := parser.ParseFile(set, name, text, 0)
		must(t, err)
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, s := range group.Specs {
				spec := s.(*ast.ValueSpec)
				if len(spec.Values) != 1 {
					continue
				}
				expr := string(text[set.Position(spec.Values[0].Pos()).Offset:set.Position(spec.Values[0].End()).Offset])
				expr = strings.NewReplacer("time.Second", "1000000000", "time.Millisecond", "1000000").Replace(expr)
				if v, err := types.Eval(token.NewFileSet(), nil, token.NoPos, expr); err == nil && v.Value != nil {
					values[spec.Names[0].Name] = v.Value.String()
				}
			}
		}
	}
	return values
}
