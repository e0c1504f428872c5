import { cp, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const ROOT = join(__dirname, '../..');

/**
 * Makes a copy of the tested build in which a read model has a new version.
 * @param folder where to
 * @returns its `main.js`
 */
export async function nextBuild(folder: string): Promise<string> {
  await cp(join(ROOT, 'dist'), join(folder, 'dist'), { recursive: true });
  await cp(join(ROOT, 'package.json'), join(folder, 'package.json'));
  for (const name of ['node_modules', 'schemas']) await symlink(join(ROOT, name), join(folder, name));
  const file = join(folder, 'dist/read-models/history.projection.js');
  const code = await readFile(file, 'utf8');
  const changed = code.replace(/version: \d+,/, 'version: 99,');
  expect(changed).not.toBe(code);
  await writeFile(file, changed);
  return join(folder, 'dist/main.js');
}
