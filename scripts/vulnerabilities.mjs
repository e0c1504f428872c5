// Fails when a package that comes with the service has a known vulnerability of high severity that a newer version mends.
// Registries that are mirrors often do not tell of vulnerabilities: then it says that nobody has looked.
import { spawnSync } from 'node:child_process';

const { stdout } = spawnSync('npm', ['audit', '--omit=dev', '--json'], {
  encoding: 'utf8',
  maxBuffer: 64 * 1024 * 1024,
});
const report = JSON.parse(stdout || '{}');
if (!report.vulnerabilities) {
  console.log(`NOT LOOKED AT: the registry does not tell of vulnerabilities: ${report.message ?? stdout}`);
  process.exit(0);
}
const found = Object.values(report.vulnerabilities).filter(({ severity }) =>
  ['high', 'critical'].includes(severity),
);
for (const { name, severity, range, fixAvailable } of found)
  console.log(
    `${name} ${range}: ${severity}${fixAvailable ? '' : ', and no version is known that mends it'}`,
  );
if (found.some(({ fixAvailable }) => fixAvailable)) process.exit(1);
