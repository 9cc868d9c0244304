module github.com/portolan/portolan

go 1.26.0
