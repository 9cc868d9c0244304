package shim

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGet(t *testing.T) {
	const text = ` { "a" : 1.0e5 , "B":[ true,{"x":"]}"} , null ], "\u0063":{"d":{"e":"\"\\"}}, "empty":{}, "none":[ ],"a":"last", "f":"\\" } `
	tests := []struct {
		path []string
		want string // empty: nothing there
	}{
		{nil, text[1 : len(text)-1]},
		{[]string{"a"}, `"last"`},
		{[]string{"A"}, `"last"`},
		{[]string{"b"}, `[ true,{"x":"]}"} , null ]`},
		{[]string{"c", "d", "e"}, `"\"\\"`},
		{[]string{"C", "D"}, `{"e":"\"\\"}`},
		{[]string{"empty"}, `{}`},
		{[]string{"f"}, `"\\"`},
		{[]string{"none"}, `[ ]`},
		{[]string{"none", "x"}, ``},
		{[]string{"a", "x"}, ``},
		{[]string{"nosuch"}, ``},
		{[]string{"empty", "x"}, ``},
	}
	d, root, ok := parse([]byte(text))
	require.True(t, ok)
	for _, tt := range tests {
		got, ok := d.get(root, tt.path...)
		if !assert.Equal(t, tt.want != "", ok, "%q", tt.path) || !ok {
			continue
		}
		assert.Equal(t, tt.want, string(d.text(got)), "%q", tt.path)
	}
}

func TestElements(t *testing.T) {
	for text, want := range map[string][]string{
		`[]`:                         nil,
		` [ ] `:                      nil,
		`[1]`:                        {"1"},
		"[\t1 ,\r\n\"a,]\" , [[]] ]": {"1", `"a,]"`, "[[]]"},
		`[{"a":[1,2]},-0.5E-7,nul`:   nil, // not JSON
		`{"a":1}`:                    nil,
		`"[1]"`:                      nil,
		`12`:                         nil,
	} {
		var got []string
		if d, root, ok := parse([]byte(text)); ok {
			for e := range d.elements(root) {
				got = append(got, string(d.text(e)))
			}
		}
		assert.Equal(t, want, got, text)
	}
}

func TestSet(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"there", `{"x":1, "Driver" : "bridge" ,"y":1.10}`, `{"x":1, "Driver" : "new" ,"y":1.10}`},
		{"in lower case", `{"driver":null}`, `{"driver":"new"}`},
		{"missing", `{ "x":1}`, `{"Driver":"new", "x":1}`},
		{"empty object", ` { }`, ` {"Driver":"new" }`},
		{"twice", `{"Driver":"a","Driver":"b"}`, `{"Driver":"a","Driver":"new"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, root, ok := parse([]byte(tt.text))
			require.True(t, ok)
			got := d.apply([]edit{d.set(root, "Driver", []byte(`"new"`))})
			assert.Equal(t, tt.want, string(got))
			assert.True(t, json.Valid(got))
		})
	}
}
