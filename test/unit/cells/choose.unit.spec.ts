import { choose } from '../../../src/cells/cell-directory.js';

const tenants = Array.from({ length: 20_000 }, (_, index) => `tenant-${index}`);
const cells = [
  { name: 'default', weight: 1 },
  { name: 'two', weight: 2 },
  { name: 'three', weight: 1 },
  { name: 'full', weight: 0 },
];

it('given cells with weights, when tenants are given out, then each cell gets its part of them, and one without a weight gets none', () => {
  const counts = new Map<string, number>();
  for (const tenant of tenants) {
    const cell = choose(tenant, cells);
    counts.set(cell, (counts.get(cell) ?? 0) + 1);
  }
  expect([...counts.keys()].sort()).toEqual(['default', 'three', 'two']);
  for (const { name, weight } of cells.slice(0, 3)) {
    const part = (counts.get(name) ?? 0) / tenants.length;
    // Five standard deviations of a part of a half.
    expect(Math.abs(part - weight / 4)).toBeLessThan(0.018);
  }
});

it('given a cell more, when the same tenants are given out, then all that go elsewhere go to it', () => {
  const more = [...cells, { name: 'four', weight: 1 }];
  const moved = tenants.filter((tenant) => choose(tenant, more) !== choose(tenant, cells));
  expect(moved.length).toBeGreaterThan(0);
  for (const tenant of moved) expect(choose(tenant, more)).toBe('four');
});

it('given no cell with a weight, when a tenant is given out, then it goes to the first', () => {
  expect(choose('acme', [{ name: 'two', weight: 0 }])).toBe('default');
});
