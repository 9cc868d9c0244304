package driver

import "strings"

// nearest returns the name that somebody who wrote got most likely meant, or ""
// if there is none. A name's last part alone counts as well: people write mtu.
func nearest(got string, names []string) string {
	best, found := 4, "" // more than three typing errors is another word
	for _, name := range names {
		d := min(distance(got, name), distance(lastPart(got), lastPart(name)))
		if d < best && d < len(lastPart(name)) {
			best, found = d, name
		}
	}
	return found
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// distance counts the letters to insert, delete or replace to make a of b
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
