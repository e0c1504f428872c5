import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';

const root = fileURLToPath(new URL('../../', import.meta.url));
const require = createRequire(join(root, 'package.json'));

/** A module of the built service, or a package that it depends on. */
export const product = (name) => require(name.startsWith('dist/') ? join(root, name) : name);

/** The built service's entry. */
export const main = join(root, 'dist', 'main.js');
/** The built command line's entry. */
export const commandLine = join(root, 'dist', 'cli', 'main.js');
export const fastifyEntry = () => require.resolve('fastify');
export const pgEntry = () => require.resolve('pg');
