// Fails when a package that comes with the service has a licence that nobody has looked at.
// The same list as a software bill of materials: npm run --silent sbom
import { execFileSync } from 'node:child_process';

const ALLOWED = [
  'MIT',
  'MIT-0',
  'ISC',
  'Apache-2.0',
  'BSD-2-Clause',
  'BSD-3-Clause',
  '0BSD',
  'Python-2.0',
  'PostgreSQL',
];

const sbom = execFileSync('npm', ['sbom', '--omit=dev', '--sbom-format=cyclonedx'], {
  encoding: 'utf8',
  maxBuffer: 64 * 1024 * 1024,
});
const licenceOf = ({ licenses = [] }) =>
  licenses.map(({ license, expression }) => expression ?? license.id ?? license.name).join(' ') || 'none';
const unknown = JSON.parse(sbom).components.filter((one) => !ALLOWED.includes(licenceOf(one)));
for (const one of unknown) console.error(`${one.name} ${one.version}: ${licenceOf(one)}`);
if (unknown.length > 0) {
  console.error(
    `Not among ${ALLOWED.join(', ')}: look at them, and add the licence to scripts/licences.mjs.`,
  );
  process.exit(1);
}
