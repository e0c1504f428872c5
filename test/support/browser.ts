import { existsSync, readFileSync } from 'node:fs';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';
import { describeUnless } from './programs.js';

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(
  existsSync,
);

/** Declares tests that need a Chromium of the system; with REQUIRE_PROGRAMS=1 they fail without it. */
export const describeInChromium = (name: string, tests: () => void): void => {
  const chromiumIsNeeded = { what: 'Chromium', variable: 'REQUIRE_PROGRAMS' };
  describeUnless(CHROMIUM ? undefined : 'it is not installed', chromiumIsNeeded, name, tests);
};

export const launch = (): Promise<Browser> =>
  chromium.launch({
    executablePath: CHROMIUM ?? '',
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--force-color-profile=srgb'],
  });

/** A page of the console in a browser of its own, which remembers whatever went wrong in it. */
export interface ConsolePage {
  readonly page: Page;
  readonly context: BrowserContext;
  /** What the policy of the page refused, and what was thrown and not caught. */
  readonly faults: () => Promise<string[]>;
  /** Opens a view, e.g. `/sessions/user-alice?at=3`. */
  readonly open: (view: string) => Promise<void>;
}

export interface PageOptions {
  readonly width?: number;
  readonly height?: number;
  readonly colorScheme?: 'light' | 'dark';
  /** An API key with which the page is signed in. */
  readonly key?: string;
  /** A script that runs before those of the page. */
  readonly script?: string;
}

export async function openConsole(
  browser: Browser,
  url: string,
  { width = 1280, height = 800, colorScheme = 'light', key, script }: PageOptions = {},
): Promise<ConsolePage> {
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme,
    locale: 'en-GB',
    timezoneId: 'UTC',
    acceptDownloads: true,
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  const thrown: string[] = [];
  context.on('weberror', (error) => thrown.push(error.error().message));
  await context.addInitScript(`
    globalThis.refused = [];
    document.addEventListener('securitypolicyviolation', (event) =>
      refused.push(event.violatedDirective + ' ' + event.blockedURI + ' ' + event.sample));
    // The empty page that a browser begins with has no storage.
    ${key === undefined ? '' : `if (location.protocol !== 'about:') sessionStorage.setItem('colloquy.key', ${JSON.stringify(key)});`}
    ${script ?? ''}`);
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  return {
    page,
    context,
    faults: async () => [...thrown, ...(await page.evaluate<string[]>('refused'))],
    open: async (view) => {
      await page.goto(`${url}/console#${view}`);
    },
  };
}

const AXE = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

/** What axe finds in the page as it is (WCAG 2.2 AA and best practices): one line for each rule and element. */
export async function axeFaults(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return page.evaluate<string[]>(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => id + ' ' + target + ' ' + failureSummary)))`);
}
