package layout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"irfs/internal/irfstest"
	"irfs/layout"
)

// The language of these tests: an archive is a string, the sum of its entries, and an entry is a
// header as POSIX's ustar format has it, with changes to its bytes, and what follows it.
// Other tests make archives with archive/tar, which writes no malformed ones.

// An edit changes the bytes of a header.
type edit func(header []byte)

func at(offset int, text string) edit { return func(h []byte) { copy(h[offset:], text) } }

func flag(c byte) edit { return at(156, string(rune(c))) }
func size(field string) edit {
	return at(124, (field + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")[:12])
}
func bytesOf(n int) edit         { return size(fmt.Sprintf("%011o", n)) }
func linkTo(target string) edit  { return at(157, target) }
func prefix(name string) edit    { return at(345, name) }
func mode(field string) edit     { return at(100, field) }
func magic(text string) edit     { return at(257, text) }
func checksum(field string) edit { return at(148, field) }

var (
	v7   = magic("\x00\x00\x00\x00\x00\x00\x00\x00")
	gnu  = magic("ustar  \x00")
	star = at(508, "tar\x00")
)

// headerOf is one header, whose checksum is right unless told otherwise.
func headerOf(name string, edits ...edit) string {
	h := make([]byte, 512)
	for _, e := range append([]edit{at(0, name[:min(len(name), 100)]), mode("0000644\x00"), at(108, "0000000\x00"), at(116, "0000000\x00"), bytesOf(0), at(136, "00000000000\x00"),
		magic("ustar\x0000"), flag('0'), checksum("        ")}, edits...) {
		e(h)
	}
	if string(h[148:156]) == "        " {
		mend(h)
	}
	return string(h)
}

// mend puts a header's checksum right.
func mend(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func padded(content string) string { return content + strings.Repeat("\x00", -len(content)&511) }

// file is an entry with its size.
func file(name, content string, edits ...edit) string {
	return headerOf(name, append([]edit{bytesOf(len(content))}, edits...)...) + padded(content)
}

func directory(name string, edits ...edit) string {
	return headerOf(name, append([]edit{flag('5'), mode("0000755\x00")}, edits...)...)
}

// record is one of an extended header.
func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

func records(pairs ...string) (text string) {
	for i := 0; i < len(pairs); i += 2 {
		text += record(pairs[i], pairs[i+1])
	}
	return text
}

func pax(pairs ...string) string    { return file("PaxHeaders/x", records(pairs...), flag('x')) }
func global(pairs ...string) string { return file("pax_global_header", records(pairs...), flag('g')) }
func long(kind byte, text string) string {
	return file("././@LongLink", text, flag(kind), gnu)
}

var ending = strings.Repeat("\x00", 1024)

// An oddTar is an archive whose entries readers may understand differently. It
// is taken, or refused, or either; GNU tar has the last word on those that are taken.
type oddTar struct {
	name    string
	archive string
	wanted  verdictOnTar
}

type verdictOnTar int

const (
	refused verdictOnTar = iota
	taken
	either // readers agree on it, and nobody needs it
)

func oddTars() []oddTar {
	hidden := file("hidden", "inner")
	inside := len(hidden)
	deep := strings.Repeat("d/", 120) + "f"
	rows := []oddTar{
		{"a file", file("a", "1"), taken},
		{"no file", "", taken},
		{"v7", file("a", "1", v7, flag(0)), taken},
		{"v7 with a slash is a directory", file("a/", "", v7, flag(0)) + file("a/b", "1"), taken},
		{"old GNU", file("a", "1", gnu), taken},
		{"magic of nobody", file("a", "1", magic("USTAR\x0000")), taken},
		{"ustar of another version", file("a", "1", magic("ustar\x0099")), taken},
		{"ustar without a version", file("a", "1", magic("ustar\x00\x00\x00")), taken},
		{"star", file("a", "1", star), refused},
		{"star with a prefix", file("a", "1", star, prefix("p")), refused},
		{"prefix", file("a", "1", prefix("x/y")), taken},
		{"prefix of 155 bytes", file(strings.Repeat("n", 100), "1", prefix(strings.Repeat("p", 77)+"/"+strings.Repeat("q", 77))), taken},
		{"prefix and no name", file("", "", prefix("x")), refused},
		{"prefix in v7, which has none", file("a", "1", v7, prefix("x")), taken},
		{"prefix in GNU's format, which has none", file("a", "1", gnu, prefix("evil")), refused},
		{"times in GNU's format", file("a", "1", gnu, at(345, "00000000001\x0000000000002\x00")), taken},
		{"prefix that is absolute", file("a", "1", prefix("/x")), refused},
		{"name of 100 bytes", file(strings.Repeat("n", 100), "1"), taken},
		{"name with a NUL in it", file("a\x00b", "1"), taken},
		{"name that is not UTF-8", file("a\xff", "1"), refused},
		{"name that is UTF-8", file("ä", "1"), taken},
		{"name with a backslash and a newline", file("a\\n\nb", "1"), taken},
		{"name with ./", file("./a", "1"), taken},
		{"name with slashes", file(".//a//b", "1"), taken},
		{"name with . in the middle", file("a/./b", "1"), taken},
		{"name with . at the end", directory("a/") + file("a/.", "1"), refused},
		{"name with .. after one step", file("a/../b", "1"), refused},
		{"name with .. after two steps", file("a/b/../c", "1"), refused},
		{"name with .. at the end", file("a/b/..", "1"), refused},
		{"name .", file(".", "1"), refused},
		{"name ..", file("..", "1"), refused},
		{"no name", file("", "1"), refused},
		{"nothing in a header but its checksum", headerOf("", func(h []byte) { clear(h); copy(h[148:], "        ") }) + file("a", "1"), refused},
		{"name of a directory", file("a/", "1"), refused},
		{"name of a directory without a byte", file("a/", ""), refused},
		{"name whose part is over 255 bytes", pax("path", strings.Repeat("n", 256)) + file("a", "1"), refused},
		{"name over 4096 bytes", pax("path", strings.Repeat("d/", 2100)+"n") + file("a", "1"), refused},
		{"a part of 255 bytes", pax("path", strings.Repeat("n", 255)) + file("a", "1"), taken},

		{"twice", file("a", "1") + file("a", "2"), refused},
		{"twice, by ./", file("a", "1") + file("./a", "2"), refused},
		{"twice, by //", file("a/b", "1") + file("a//b", "2"), refused},
		{"twice, by prefix", file("a/b", "1") + file("b", "2", prefix("a")), refused},
		{"below a file", file("a", "1") + file("a/b", "2"), refused},
		{"above a file", file("a/b", "1") + file("a", "2"), refused},
		{"a directory upon a file", file("a", "1") + directory("a/"), refused},
		{"a directory below a file", file("a", "1") + directory("a/b/"), refused},
		{"a file upon a directory", directory("a/") + file("a", "1"), refused},
		{"a directory twice", directory("a/") + file("a/b", "1") + directory("a"), taken},
		{"a directory named .", directory("./") + file("a", "1"), taken},
		{"a directory named ..", directory("../") + file("a", "1"), refused},
		{"a directory with a size", directory("a/", bytesOf(inside)) + hidden, refused},
		{"a directory with a size by PAX", pax("size", fmt.Sprint(inside)) + directory("a/") + hidden, refused},
		{"a directory of v7 with a size", headerOf("a/", v7, flag(0), bytesOf(inside)) + hidden, refused},

		{"link to a layer", file("x/layer.tar", "1") + headerOf("y/layer.tar", flag('2'), linkTo("../x/layer.tar")), taken},
		{"link to nothing", headerOf("y/layer.tar", flag('2')), refused},
		{"link with a size", headerOf("y/layer.tar", flag('2'), linkTo("x"), bytesOf(inside)) + hidden, refused},
		{"link with a size by PAX", pax("size", fmt.Sprint(inside)) + headerOf("y/layer.tar", flag('2'), linkTo("x")) + hidden, refused},
		{"link with a long target", long('K', deep+"\x00") + headerOf("y/layer.tar", flag('2'), linkTo("x")), taken},
		{"link with a target by PAX", pax("linkpath", "p") + headerOf("y/layer.tar", flag('2'), linkTo("x")), taken},
		{"link with a long target of no bytes", long('K', "\x00") + headerOf("y/layer.tar", flag('2'), linkTo("x")), refused},
		{"link with a slash", headerOf("y/layer.tar/", flag('2'), linkTo("x")), either},
		{"link, and a file through it", directory("x/") + headerOf("layer.tar", flag('2'), linkTo("x")) + file("layer.tar/a", "1"), refused},
		{"link, and a file upon it", headerOf("layer.tar", flag('2'), linkTo("x")) + file("layer.tar", "1"), refused},
		{"link, and a directory upon it", directory("x/") + headerOf("layer.tar", flag('2'), linkTo("x")) + directory("layer.tar/"), refused},

		{"size in octal without zeros", file("a", "1", size("1")), taken},
		{"size in octal after spaces", file("a", "1", size("          1 ")), taken},
		{"size in octal of 12 digits", file("a", "1", size("000000000001")), taken},
		{"size in octal, then junk", file("a", "1", size("00000001\x00777")), taken},
		{"size in octal, a space, and more", file("a", "1", size("00000001 777")), refused},
		{"size after one NUL", file("a", "1", size("\x0000000000001")), either},
		{"size after two NULs", file("a", hidden, size(fmt.Sprintf("\x00\x00%09o", inside))), refused},
		{"size after a NUL and a space", file("a", "1", size("\x00 0000000001")), either},
		{"size after a space and a NUL", file("a", hidden, size(fmt.Sprintf(" \x00%09o", inside))), refused},
		{"size after a tab", file("a", "1", size("\t0000000001")), refused},
		{"size of spaces", file("a", "", size("            ")), refused},
		{"size of NULs", file("a", "", size("")), taken},
		{"size that is not a number", file("a", "1", size("0x000000001")), refused},
		{"size with an 8", file("a", "1", size("00000000018")), refused},
		{"size with a sign", file("a", "1", size("+0000000001")), refused},
		{"size below zero", file("a", "1", size("-0000000001")), refused},
		{"size in base 256", file("a", "1", size("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01")), taken},
		{"size in base 256, below zero", file("a", "1", size("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")), refused},
		{"size in base 256, huge", file("a", "1", size("\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")), refused},
		{"size in base 256, over all bounds", file("a", "1", size("\x80\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01")), refused},
		{"size in base 256 with another mark", file("a", "1", size("\xc0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01")), refused},
		{"mode in base 256 with another mark", file("a", "1", mode("\x81\x00\x00\x00\x00\x00\x01\xa4")), refused},
		{"mode in base 256", file("a", "1", mode("\x80\x00\x00\x00\x00\x00\x01\xa4")), taken},
		{"mode in base 256, over all bounds", file("a", "1", mode("\x80\x7f\x00\x00\x00\x00\x01\xa4")), either},
		{"user in base 256", file("a", "1", at(108, "\x80\x00\x00\x00\x7f\xff\xff\xff")), taken},
		{"user in base 256, over all bounds", file("a", "1", at(108, "\x80\x00\x00\x01\x00\x00\x00\x01")), either},
		{"group in base 256, over all bounds", file("a", "1", at(116, "\x80\x7f\x00\x01\x00\x00\x00\x01")), either},
		{"time in base 256, over all bounds", file("a", "1", at(136, "\x80\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff")), either},
		{"mode of spaces", file("a", "1", mode("        ")), refused},
		{"mode that is not a number", file("a", "1", mode("rw-r--r-")), refused},
		{"mode of star, which is the file's type too", file("a", "1", mode("0100644\x00")), taken},

		{"checksum of signed bytes", func() string {
			h := []byte(headerOf("ä", bytesOf(1)))
			sum := 8 * int(' ')
			for i, c := range h {
				if i < 148 || i >= 156 {
					sum += int(int8(c))
				}
			}
			copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
			return string(h) + padded("1")
		}(), taken},
		{"checksum that is wrong", file("a", "1", checksum("000001\x00 ")), refused},
		{"checksum of the second that is wrong", file("a", "1") + file("b", "1", checksum("000001\x00 ")), refused},
		{"checksum that is missing", file("a", "1", checksum("\x00\x00\x00\x00\x00\x00\x00\x00")), refused},

		{"path by PAX", pax("path", "b") + file("a", "1"), taken},
		{"path by PAX, twice in one", pax("path", "b", "path", "c") + file("a", "1"), either},
		{"path by PAX over prefix", pax("path", "b") + file("a", "1", prefix("x")), taken},
		{"path by PAX of nothing", pax("path", "") + file("a", "1"), refused},
		{"path by PAX of something and of nothing", pax("path", "b", "path", "") + file("a", "1"), refused},
		{"path by PAX with a NUL", pax("path", "b\x00c") + file("a", "1"), refused},
		{"path by PAX with a slash at its end", pax("path", "b/") + file("a", "1"), refused},
		{"path by PAX with a slash at its end, v7", pax("path", "b/") + file("a", "", flag(0)), taken},
		{"path by PAX without the slash of the name", pax("path", "b") + file("a/", "1"), taken},
		{"path by PAX without the slash of the name, v7", pax("path", "b") + file("a/", "1", flag(0)), taken},
		{"path by PAX that is absolute", pax("path", "/b") + file("a", "1"), refused},
		{"path by PAX, for the next one only", pax("path", "b") + file("a", "1") + file("c", "2"), taken},
		{"path by PAX, and the end", pax("path", "b"), taken},
		{"path by PAX to a directory", pax("path", "b") + directory("a/") + file("b/c", "1"), taken},
		{"PAX that says nothing", pax() + file("a", "1"), taken},
		{"PAX that says something unknown", pax("x", "y", "SCHILY.xattr.user.x", "y", "mtime", "1.5") + file("a", "1"), taken},
		{"PAX in GNU's format", file("x", records("path", "b"), flag('x'), gnu) + file("a", "1", gnu), taken},
		{"PAX of Sun", file("x", records("path", "b"), flag('X')) + file("a", "1"), refused},
		{"PAX without a newline", file("x", strings.TrimSuffix(record("path", "bc"), "\n")+"x", flag('x')) + file("a", "1"), refused},
		{"PAX without =", file("x", "10 path b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record of another length", file("x", "99 path=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record after a space", file("x", " 10 path=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record with a plus", file("x", "+11 path=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record with zeros", file("x", "011 path=b\n", flag('x')) + file("a", "1"), taken},
		{"PAX record after two spaces", file("x", "11  path=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record after a space and a tab", file("x", "11 \tpath=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record with a tab", file("x", "10\tpath=b\n", flag('x')) + file("a", "1"), refused},
		{"PAX record, of another volume", pax("GNU.volume.size", "x") + file("a", "1"), refused},
		{"PAX records and a NUL", file("x", record("path", "b")+"\x00", flag('x')) + file("a", "1"), refused},
		{"PAX record with a NUL in an unknown value", pax("x", "a\x00b") + file("a", "1"), taken},
		{"PAX record that hides from other readers behind a space", file("x", "10 path=b\n11  path=c\n", flag('x')) + file("a", "1"), refused},
		{"PAX record with no key", pax("", "b") + file("a", "1"), refused},

		{"size by PAX", pax("size", "1") + file("a", "1"), taken},
		{"size by PAX, larger", pax("size", fmt.Sprint(inside)) + headerOf("a") + hidden, taken},
		{"size by PAX, smaller", pax("size", "0") + headerOf("a", bytesOf(inside)) + hidden, taken},
		{"size by PAX, and none in the header", pax("size", fmt.Sprint(inside)) + headerOf("a", size("")) + hidden, taken},
		{"size by PAX of nothing", pax("size", "") + file("a", "1"), refused},
		{"size by PAX with a plus", pax("size", "+1") + file("a", "1"), refused},
		{"size by PAX below zero", pax("size", "-1") + file("a", "1"), refused},
		{"size by PAX with zeros", pax("size", "0001") + file("a", "1"), taken},
		{"size by PAX in hex", pax("size", "0x1") + file("a", "1"), refused},
		{"size by PAX after a space", pax("size", " 1") + file("a", "1"), refused},
		{"size by PAX before a space", pax("size", "1 ") + file("a", "1"), refused},
		{"size by PAX with a fraction", pax("size", "1.0") + file("a", "1"), refused},
		{"size by PAX that is huge", pax("size", "9223372036854775807") + file("a", "1"), refused},
		{"size by PAX over all bounds", pax("size", "18446744073709551617") + file("a", "1"), refused},
		{"size by PAX twice in one", pax("size", "0", "size", "1") + file("a", "1"), either},
		{"user by PAX of nothing", pax("uid", "") + file("a", "1"), refused},
		{"user by PAX wrong, then right", pax("uid", "+1", "uid", "1") + file("a", "1"), refused},
		{"user by PAX with a plus", pax("uid", "+1") + file("a", "1"), refused},
		{"user by PAX below zero", pax("uid", "-1") + file("a", "1"), refused},
		{"user by PAX over all bounds", pax("uid", "99999999999") + file("a", "1"), refused},
		{"time by PAX before 1970", pax("mtime", "-1.5") + file("a", "1"), taken},
		{"time by PAX that is none", pax("mtime", "1.x") + file("a", "1"), refused},
		{"time by PAX with a plus", pax("mtime", "+1") + file("a", "1"), refused},

		{"PAX upon PAX, other keys", pax("size", fmt.Sprint(inside)) + pax("path", "b") + headerOf("a") + hidden, refused},
		{"PAX upon PAX, the same key", pax("path", "b") + pax("path", "c") + file("a", "1"), refused},
		{"PAX upon a long name", long('L', "b\x00") + pax("path", "c") + file("a", "1"), refused},
		{"a long name upon PAX", pax("path", "c") + long('L', "b\x00") + file("a", "1"), refused},
		{"PAX with a size upon a long name", long('L', "b\x00") + pax("size", fmt.Sprint(inside)) + headerOf("a") + hidden, refused},
		{"a long name with a size upon PAX", pax("size", fmt.Sprint(inside)) + long('L', "b\x00") + headerOf("a") + hidden, refused},
		{"PAX across a global one", pax("path", "b") + global("comment", "c") + file("a", "1"), refused},
		{"a long name across a global one", long('L', "b\x00") + global("comment", "c") + file("a", "1"), refused},

		{"long name", long('L', deep+"\x00") + file("a", "1", gnu), taken},
		{"long name in ustar", long('L', deep+"\x00") + file("a", "1"), taken},
		{"long name over prefix", long('L', "b\x00") + file("a", "1", prefix("x")), taken},
		{"long name without a NUL", long('L', deep) + file("a", "1", gnu), taken},
		{"long name that goes on after its size", long('L', "b")[:512] + strings.Repeat("b", 2) + long('L', "b")[514:] + file("a", "1", gnu), refused},
		{"long name of whole blocks without a NUL", long('L', strings.Repeat("b/", 256)) + file("a", "1", gnu), refused},
		{"long name with two NULs", long('L', "b\x00c\x00") + file("a", "1", gnu), taken},
		{"long name of no bytes", long('L', "") + file("a", "1", gnu), refused},
		{"long name of a NUL", long('L', "\x00") + file("a", "1", gnu), refused},
		{"long name of a directory", long('L', "b/\x00") + file("a", "1", gnu), refused},
		{"long name of a directory, v7", long('L', "b/\x00") + file("a", "", v7, flag(0)), taken},
		{"long name twice", long('L', "b\x00") + long('L', "c\x00") + file("a", "1", gnu), refused},
		{"long name and target", long('K', "t\x00") + long('L', "y/layer.tar\x00") + headerOf("a", flag('2'), linkTo("x")), taken},
		{"long target and name", long('L', "y/layer.tar\x00") + long('K', "t\x00") + headerOf("a", flag('2'), linkTo("x")), taken},
		{"long name, target, name", long('L', "b\x00") + long('K', "t\x00") + long('L', "c\x00") + file("a", "1"), refused},
		{"long target of a file", long('K', "t\x00") + file("a", "1"), taken},
		{"long name with a base 256 size", file("x", "b\x00", flag('L'), gnu, size("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02")) + file("a", "1"), either},
		{"long name with a size after two NULs", headerOf("x", flag('L'), gnu, size("\x00\x00000000002")) + padded("b\x00") + file("a", "1"), refused},
		{"PAX with a size after two NULs", headerOf("x", flag('x'), size(fmt.Sprintf("\x00\x00%09o", 10))) + padded("10 path=b\n") + file("a", "1"), refused},
		{"long name and the end", long('L', "b\x00"), taken},

		{"global comment", global("comment", "c") + file("a", "1"), taken},
		{"global comment in the middle", file("a", "1") + global("comment", "c") + file("b", "1"), taken},
		{"global path", global("path", "b") + file("a", "1"), refused},
		{"global size", global("size", fmt.Sprint(inside)) + headerOf("a") + hidden, refused},
		{"global size that does not matter", global("size", "7") + file("a", "1"), refused},
		{"global unknown", global("x", "y") + file("a", "1"), refused},
		{"global that says nothing", global() + file("a", "1"), taken},
		{"global malformed", file("g", "nonsense", flag('g')) + file("a", "1"), refused},
		{"global with a NUL", file("g", record("comment", "x")+"\x00", flag('g')) + file("a", "1"), refused},
		{"global comment, and the end", file("a", "1") + global("comment", "c"), taken},

		{"type of a directory in v7, by its name, and its long name", long('L', "b\x00") + file("a/", "1", v7, flag(0)), taken},
		{"sparse of GNU", file("a", "1", gnu, flag('S'), at(386, "00000000000\x0000000000001\x00"), at(483, "00000000001\x00")), refused},
		{"sparse of GNU, as large as it likes", file("a", "1", gnu, flag('S'), at(386, "00001000000\x0000000000001\x00"), at(483, "00001000001\x00")), refused},
		{"sparse of PAX 0.0", pax("GNU.sparse.size", "10", "GNU.sparse.numblocks", "1", "GNU.sparse.offset", "0", "GNU.sparse.numbytes", "1") + file("a", "1"), refused},
		{"sparse of PAX 0.1", pax("GNU.sparse.size", "10", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,1") + file("a", "1"), refused},
		{"sparse of PAX 0.1 with another name", pax("GNU.sparse.size", "10", "GNU.sparse.name", "b", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "0,1") + file("a", "1"), refused},
		{"sparse of PAX 1.0", pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "b", "GNU.sparse.realsize", "10") + file("a", padded("1\n0\n1\n")+"1"), refused},
		{"sparse of PAX 1.0 with a billion parts", pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "10") + file("a", padded("1000000000\n")), refused},
		{"sparse of PAX, a name and no more", pax("GNU.sparse.name", "b") + file("a", "1"), refused},
		{"sparse of PAX, a size and no more", pax("GNU.sparse.realsize", "0") + file("a", "1"), refused},
		{"sparse of PAX by a global one", global("GNU.sparse.major", "1", "GNU.sparse.minor", "0") + file("a", padded("0\n")), refused},
		{"dump of a directory by PAX", pax("GNU.dumpdir", "Nx\x00\x00") + file("a", "1"), either},

		{"one block of zeros, and more", file("a", "1") + ending[:512] + file("b", "1"), refused},
		{"one block of zeros first", ending[:512] + file("b", "1"), refused},
		{"two blocks of zeros, and more", file("a", "1") + ending + file("b", "1"), refused},
		{"PAX, and one block of zeros", pax("path", "b") + ending[:512] + file("a", "1"), refused},
		{"a file that is longer than the archive", headerOf("a", bytesOf(4711)), refused},
	}
	for kind, wanted := range map[byte]verdictOnTar{0: taken, '0': taken, '7': refused, 'D': refused, 'M': refused, 'N': refused, 'V': refused, 'A': refused, 'I': refused, 'Z': refused, 'z': refused, '9': refused, ' ': refused, '\n': refused, '1': refused, '3': refused, '4': refused, '6': refused} {
		rows = append(rows, oddTar{fmt.Sprintf("type %q", kind), file("a", hidden, flag(kind)), wanted})
	}
	for i := range rows {
		rows[i].archive += ending
	}
	// What no reader may take for whole.
	return append(rows, oddTar{"no end", file("a", "1"), refused}, oddTar{"half an end", file("a", "1") + ending[:512], refused}, oddTar{"padding that is cut off", headerOf("a", bytesOf(1)) + "1", refused})
}

func names(files map[string]string) string {
	return fmt.Sprintf("%.100q", slices.Sorted(maps.Keys(files)))
}

// gnuTar extracts an archive, and gives its files as ReadEntries does.
func gnuTar(t testing.TB, archive []byte) (map[string]string, error) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tar", "-xf", "-", "-C", dir)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TAR_OPTIONS=")
	cmd.Stdin = bytes.NewReader(archive)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("tar: %w: %s", err, bytes.TrimSpace(out))
	}
	files := map[string]string{}
	must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		short, _ := filepath.Rel(dir, name)
		switch e.Type() {
		case fs.ModeDir:
			return os.Chmod(name, 0o700)
		case fs.ModeSymlink:
			target, err := os.Readlink(name)
			files[short] = "-> " + target
			return err
		case 0:
			os.Chmod(name, 0o600)
			data, err := os.ReadFile(name)
			files[short] = string(data)
			return err
		}
		files[short] = e.Type().String()
		return nil
	}))
	return files, err
}

// agree fails unless GNU tar finds the entries in the archive that irfs took.
func agree(t testing.TB, archive []byte, entries map[string]string) {
	t.Helper()
	files, err := gnuTar(t, archive)
	if err != nil {
		t.Errorf("taken, with %s, and GNU tar refuses it: %.300v", names(entries), err)
		return
	}
	for name, content := range entries {
		if got, ok := files[name]; !ok {
			t.Errorf("%.100q is %.100q, and not there for GNU tar, which has %s", name, content, names(files))
		} else if got != content {
			t.Errorf("%q is %.100q, and for GNU tar %.100q", name, content, got)
		}
	}
	contents := slices.Collect(maps.Values(entries))
	for name, content := range files {
		_, ok := entries[name]
		if !ok && !layout.PassedOver(name) && !(strings.HasPrefix(name, "blobs/") && slices.Contains(contents, content)) {
			t.Errorf("%q is not there, and %.100q for GNU tar", name, content)
		}
	}
}

// 24: what is taken has the entries that GNU tar finds, whatever an archive is made of.
func TestArchivesAsGNUTarReadsThem(t *testing.T) {
	for _, row := range oddTars() {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			entries, err := registry(t, dir).ReadEntries(strings.NewReader(row.archive))
			if left := tree(t, dir); len(left) != 1 {
				t.Errorf("left: %q", left)
			}
			if err != nil {
				if row.wanted == taken {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if row.wanted == refused {
				t.Errorf("taken, with %s", names(entries))
			}
			agree(t, []byte(row.archive), entries)
		})
	}
}

// FuzzArchive: whatever an archive is made of, nothing of it is left when it is refused or discarded, nor anything outside changed, and
// what is taken has the entries that GNU tar finds. With mended, the checksums of headers are put right first, for else few changes would get past them.
func FuzzArchive(f *testing.F) {
	for i, row := range oddTars() {
		f.Add([]byte(row.archive), i%2 == 0)
	}
	l, _, _ := two()
	whole := archive(f, l)
	f.Add(whole, true)
	for _, tool := range []string{"gzip", "zstd", "xz", "bzip2"} {
		if _, err := exec.LookPath(tool); err == nil {
			f.Add(packed(f, tool, whole), false)
		}
	}
	_, noTar := exec.LookPath("tar")
	f.Fuzz(func(t *testing.T, archive []byte, mended bool) {
		if len(archive) > 1<<20 {
			return // long, and like short ones
		}
		if mended {
			archive = mendAll(archive)
		}
		top := t.TempDir()
		dir := filepath.Join(top, "registry")
		must(t, os.Mkdir(dir, 0o755))
		write(t, top+"/beside", "x")
		reg := registry(t, dir)
		before := tree(t, top)
		start := time.Now()
		staged, err := reg.Stage(context.Background(), bytes.NewReader(archive), layout.Intake{Owner: me})
		if err == nil {
			staged.Discard()
		}
		same(t, top, before)
		entries, entriesErr := reg.ReadEntries(bytes.NewReader(archive))
		same(t, top, before)
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		if err == nil && entriesErr != nil {
			t.Errorf("staged, and yet %v", entriesErr)
		}
		if err != nil && !errors.Is(err, layout.ErrCorrupt) && !errors.Is(err, layout.ErrLimit) && !errors.Is(err, layout.ErrMissing) {
			t.Errorf("an error of another kind: %v", err)
		}
		if entriesErr == nil && noTar == nil && layout.Compressed(archive) == "" {
			agree(t, archive, entries)
		}
	})
}

// mendAll puts the checksums of headers right, as far as sizes lead from one to the next.
func mendAll(archive []byte) []byte {
	archive = bytes.Clone(archive)
	for at := 0; at+512 <= len(archive); {
		h := archive[at : at+512]
		if len(bytes.Trim(h, "\x00")) == 0 {
			break
		}
		mend(h)
		size := 0
		fmt.Sscanf(strings.Trim(string(h[124:136]), " \x00"), "%o", &size)
		at += 512
		if size > 0 && size <= len(archive)-at {
			at += (size + 511) &^ 511
		}
	}
	return archive
}

// packed is what a tool makes of data.
func packed(t testing.TB, command string, data []byte) []byte {
	t.Helper()
	words := strings.Fields(command)
	if _, err := exec.LookPath(words[0]); err != nil {
		irfstest.Skip(t, words[0]+" is not installed")
	}
	cmd := exec.Command(words[0], append(words[1:], "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	must(t, err)
	return out
}
