import { readFileSync } from 'node:fs';
import { join } from 'node:path';

it('given the file that auditors run, when its imports are read, then they are of Node.js alone', () => {
  const text = readFileSync(join(__dirname, '../../../src/proof/verify-export.ts'), 'utf8');
  const imported = [...text.matchAll(/(?:\bfrom\s+|\b(?:import|require)\s*\(\s*)'([^']+)'/g)].map(
    ([, name]) => name ?? '',
  );
  expect(imported.length).toBeGreaterThan(2);
  expect(imported.filter((name) => !name.startsWith('node:'))).toEqual([]);
});
