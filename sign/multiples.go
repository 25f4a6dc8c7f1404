package sign

import (
	"maps"
	"math/big"
	"slices"
	"sync"

	"filippo.io/nistec"
)

// multiples are j·2⁸ⁱ·P for a point P, at [i][j-1]: k·P is the sum of one of them for each byte of k. They take two megabytes,
// and as long to compute as a hundred verifications without them, of which each with them takes a third.
type multiples [scalarSize][255]*nistec.P384Point

func multiplesOf(p *nistec.P384Point) *multiples {
	m := new(multiples)
	for i := range m {
		m[i][0] = p
		for j := 1; j < len(m[i]); j++ {
			m[i][j] = nistec.NewP384Point().Add(m[i][j-1], p)
		}
		p = nistec.NewP384Point().Add(m[i][len(m[i])-1], p)
	}
	return m
}

// add adds k·P to sum. It takes less time for a k with zeros.
func (m *multiples) add(sum *nistec.P384Point, k *big.Int) {
	var bytes [scalarSize]byte
	for i, b := range k.FillBytes(bytes[:]) {
		if b != 0 {
			sum.Add(sum, m[scalarSize-1-i][b-1])
		}
	}
}

// baseMultiples are those of the base point.
var baseMultiples = sync.OnceValue(func() *multiples { return multiplesOf(nistec.NewP384Point().SetGenerator()) })

// sumX gives the x coordinate of u1·G + u2·Q, nil for the point at infinity. nistec's addition is complete, so there are no points for
// which it does not hold.
func sumX(u1, u2 *big.Int, q *multiples) *big.Int {
	sum := nistec.NewP384Point()
	baseMultiples().add(sum, u1)
	q.add(sum, u2)
	x, err := sum.BytesX()
	if err != nil {
		return nil
	}
	return new(big.Int).SetBytes(x)
}

// frequent keeps the multiples of the keys that are used most, as those of a vendor are in his registry.
var frequent struct {
	sync.Mutex
	uses  map[string]int
	of    map[string]*frequentKey
	clock int // uses of all of them
}

type frequentKey struct {
	multiples *multiples // nil until they are computed
	used      int        // when, the last time
}

const (
	manyUses     = 100 // of a key, from which on its multiples are worth it
	maxFrequent  = 4
	maxUsesNoted = 1024
)

// multiples gives those of a key that is used often, nil for another.
func (k *PublicKey) multiples() *multiples {
	key := k.frequentKey()
	if key == nil {
		return nil
	}
	frequent.Lock()
	defer frequent.Unlock()
	return key.multiples
}

// frequentKey counts a use of the key, and computes its multiples when it is used often: meanwhile others do without them.
func (k *PublicKey) frequentKey() *frequentKey {
	frequent.Lock()
	defer frequent.Unlock()
	frequent.clock++
	if key := frequent.of[k.der]; key != nil {
		key.used = frequent.clock
		return key
	}
	if len(frequent.uses) >= maxUsesNoted || frequent.uses == nil {
		frequent.uses = map[string]int{}
	}
	if frequent.uses[k.der]++; frequent.uses[k.der] < manyUses {
		return nil
	}
	p, err := nistec.NewP384Point().SetBytes(k.point())
	if err != nil {
		return nil
	}
	delete(frequent.uses, k.der)
	if frequent.of == nil {
		frequent.of = map[string]*frequentKey{}
	}
	if len(frequent.of) >= maxFrequent { // the one that was not used for longest
		oldest := slices.MinFunc(slices.Collect(maps.Keys(frequent.of)), func(a, b string) int { return frequent.of[a].used - frequent.of[b].used })
		delete(frequent.of, oldest)
	}
	key := &frequentKey{used: frequent.clock}
	frequent.of[k.der] = key
	frequent.Unlock()
	m := multiplesOf(p)
	frequent.Lock()
	key.multiples = m
	return key
}
