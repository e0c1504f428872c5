import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { migrations } from '../../src/migrations.js';

const SOURCES = join(__dirname, '../../src');

it('given the files of migrations, when they are listed, then each is there once, in the order of its number, with the checksum of its release', () => {
  const files = readdirSync(SOURCES, { recursive: true, encoding: 'utf8' })
    .filter((path) => /(^|\/)migrations\/[^/]+$/.test(path))
    .sort((a, b) => basename(a).localeCompare(basename(b)));

  expect(
    files.map((file) => ({
      file,
      sha256: createHash('sha256')
        .update(readFileSync(join(SOURCES, file)))
        .digest('hex'),
    })),
  ).toEqual(migrations);
  expect(files.map((file) => Number.parseInt(basename(file), 10))).toEqual(
    files.map((_, index) => index + 1),
  );
});
