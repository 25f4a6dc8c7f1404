package layout

// Who is in a group, for keep.go: as far as the files of this machine say it, and an error where they may not say all.

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func userID(name string) (uint32, error) {
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(id), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no user %q", name)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(id), err
}

func groupID(name string) (uint32, error) {
	if id, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(id), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q", name)
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(id), err
}

// A groups is who is in which group, as long as the files that say so are what they were.
type groups struct {
	stamps  groupStamps
	members map[uint32][]uint32 // of those that the files name
	err     error
}

// groupFiles say who is in which group (nsswitch.conf(5), passwd(5), group(5)); systemd has more where there is anything in its directories of user
// records (nss-systemd(8)), but for the users that it makes for services, who are in groups of their own.
var (
	groupFiles = []string{"/etc/nsswitch.conf", "/etc/passwd", "/etc/group"}
	recordDirs = []string{"/etc/userdb", "/run/userdb", "/run/host/userdb", "/usr/local/lib/userdb", "/usr/lib/userdb"}
)

type groupStamps [8]Stamp

func stampGroups() (list groupStamps) {
	for i, name := range slices.Concat(groupFiles, recordDirs) {
		if info, err := os.Stat(name); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			list[i] = Stamp{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
		}
	}
	return list
}

// members returns the users in a group, also those whose primary group it is. An error if it is not certain that these are all.
func (k *keeper) members(gid uint32) ([]uint32, error) {
	stamps := stampGroups()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.groups.members == nil || k.groups.stamps != stamps {
		k.groups = readGroups()
		k.groups.stamps = stamps
	}
	list, named := k.groups.members[gid]
	if k.groups.err == nil && !named {
		return nil, errors.New("no file of this machine names it")
	}
	return list, k.groups.err
}

// eachRecord calls do with the fields of each line of a file, if there is one.
func eachRecord(name string, do func(f []string)) error {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		do(strings.Split(strings.TrimSpace(lines.Text()), ":"))
	}
	return lines.Err()
}

func readGroups() groups {
	g := groups{members: map[uint32][]uint32{}}
	read := func(name string, do func(f []string)) { g.err = errors.Join(g.err, eachRecord(name, do)) }
	read(groupFiles[0], func(f []string) {
		if !slices.Contains([]string{"passwd", "group", "initgroups"}, f[0]) || len(f) < 2 {
			return
		}
		sources, _, _ := strings.Cut(f[1], "#")
		for _, source := range strings.Fields(sources) {
			if !slices.Contains([]string{"files", "systemd"}, source) && source[0] != '[' {
				g.err = fmt.Errorf("%s names %q as a source of users and groups", groupFiles[0], source)
			}
		}
	})
	for _, dir := range recordDirs {
		if list, err := os.ReadDir(dir); len(list) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.err = fmt.Errorf("there are user records in %s", dir)
		}
	}
	ids := map[string]uint32{}
	read(groupFiles[1], func(f []string) {
		if len(f) < 4 {
			return
		}
		id, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			ids[f[0]] = uint32(id)
			g.members[uint32(gid)] = append(g.members[uint32(gid)], uint32(id))
		}
	})
	read(groupFiles[2], func(f []string) {
		if len(f) < 4 {
			return
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return
		}
		g.members[uint32(gid)] = append([]uint32{}, g.members[uint32(gid)]...) // named, be it empty
		for name := range strings.SplitSeq(f[3], ",") {
			if id, ok := ids[name]; ok {
				g.members[uint32(gid)] = append(g.members[uint32(gid)], id)
			}
		}
	})
	return g
}
