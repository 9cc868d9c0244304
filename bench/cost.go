package main

import (
	"fmt"
	"math"
	"time"
)

// cost is processor time for each answer.
type cost struct {
	own     time.Duration // of the processes that carry it; 0 where there are none
	machine time.Duration // of all that the machine did meanwhile, client and server included
}

// startCost is the processor time until now.
func startCost(pids []int) (c cost, err error) {
	if c.own, err = cpuOf(pids); err != nil {
		return c, err
	}
	c.machine, err = machineCPU()
	return c, err
}

// since is what so many answers have cost each.
func (c cost) since(pids []int, answers float64) (cost, error) {
	now, err := startCost(pids)
	each := func(total time.Duration) time.Duration {
		return time.Duration(float64(total) / math.Max(answers, 1))
	}
	return cost{each(now.own - c.own), each(now.machine - c.machine)}, err
}

func micros(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f µs", float64(d.Nanoseconds())/1000)
}
