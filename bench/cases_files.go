package main

import (
	"context"
	"os"
	"path/filepath"
)

// newContext makes the files of a context anew, so that nobody knows them.
func (m *machine) newContext(dir string, seed int) step {
	return do(func(ctx context.Context) error {
		if err := os.RemoveAll(filepath.Join(dir, "files")); err != nil {
			return err
		}
		if err := generateTree(ctx, filepath.Join(dir, "files"), uint64(seed)); err != nil {
			return err
		}
		// Files that were written in the last two seconds are not trusted to
		// stay as they are by any builder that looks at their times.
		return m.run(ctx, m.sync().argv, []string{"sleep", "3"})
	})
}

const copyFiles = "FROM scratch\nCOPY files /files\n"

func contextStore(m *machine) ([]lane, error) {
	const cold, same, changed = "context, cold", "context, the same", "context, one file changed"
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		build := b.build(dir, output{kind: "store"})
		return lane{turn: func(i int) []step {
			return []step{
				m.newContext(dir, i),
				timed(cold, build...),
				m.sync(),
				timed(same, build...),
				change(treeFile(dir+"/files", 777), i),
				timed(changed, build...),
				m.sync(),
			}
		}}, m.project(dir, copyFiles)
	})
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "cp -a; stat walk", turn: func(i int) []step {
		walk := []string{"sh", "-c", "find \"$1\" -printf '%s %T@\\n' > /dev/null", "sh", dir + "/files"}
		return []step{
			m.newContext(dir, i),
			timed(cold, "cp", "-a", dir+"/files", dir+"/copy"),
			m.sync(),
			timed(same, walk...),
			timed(changed, walk...),
			do(func(context.Context) error { return os.RemoveAll(dir + "/copy") }),
			m.sync(),
		}
	}}
	return append(lanes, limit), err
}

func contextArchive(m *machine) ([]lane, error) {
	const cold, changed = "context to OCI gzip tar, cold", "context to OCI gzip tar, one file changed"
	const other = 1000 // files that no builder knows from the case before
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		build := b.build(dir, output{kind: "oci", to: dir + ".tar"})
		return lane{turn: func(i int) []step {
			return []step{
				m.newContext(dir, other+i),
				timed(cold, build...),
				change(treeFile(dir+"/files", 777), other+i),
				m.sync(),
				timed(changed, build...),
				m.sync(),
			}
		}}, m.project(dir, copyFiles)
	})
	if !onPath("pigz") {
		return lanes, err
	}
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "tar + pigz of all", turn: func(i int) []step {
		argv := []string{dir}
		const line = `tar -C "$1" -cf - files | pigz -6 > "$1".tar.gz`
		return []step{m.newContext(dir, other+i), shell(cold, line, argv...), m.sync(), shell(changed, line, argv...), m.sync()}
	}}
	return append(lanes, limit), err
}
