// Package store keeps what must survive a restart of the daemon: networks,
// endpoints with their mappings, and the sysctls that were changed.
//
// A Store is one directory with one JSON file in it. It is read once, by Open,
// and written as a whole at each change; everything else is answered from
// memory. What a getter returns is what a restart would find: each record that
// is put is read back from its own encoding.
//
// # Files
//
// The directory (mode 0700) has state.json (mode 0600); lock, which the process
// that has the store open keeps locked by flock(2), and which has its pid;
// state.json.new while a write is going on, or after a crash in the middle of
// one; and any state.json.damaged-TIME that was set aside. Remove takes all of
// them away, nothing else does.
//
// # Format
//
// The first line of state.json is a header, the body is the rest:
//
//	{"format":"portolan-state","schema":1,"sha256":"…"}
//	{"networks":[…],"endpoints":[…],"sysctls":[…]}
//
// The checksum is also of format and schema, so that a flipped bit there is
// damage and does not look like a newer version. A shell finds it by
//
//	(echo portolan-state 1; tail -n +2 state.json) | sha256sum
//
// The header is the same, byte for byte, in every schema: a program must tell a
// file that is newer than itself from one that is damaged.
//
// # Versions
//
// Every new field makes a new schema, and so does every other change of the
// records, with a migration from the one before. A field that Open does not
// know would be lost with the next write of its record, which nobody would
// notice; so such a file counts as newer, whatever schema it claims, and Open
// refuses it. Fields that are missing are zero.
//
// The file keeps its old schema until the first change, so that somebody who
// goes back at once to the program of before can do so.
//
// # Order
//
// A change is encoded, state.json.new written and synced, renamed to
// state.json, the directory synced, and only then seen by the getters. If a
// step fails, file and memory stay as they were. Changes that arrive while a
// write is going on share the next one. There are no goroutines here.
package store
