import { defineConfig } from 'vite';

export default defineConfig({
  base: '/console/',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: '../dist/console/files',
    emptyOutDir: true,
    target: 'es2022',
    // Its polyfill is a script that writes into the page, and every browser with ES2022 has what it stands in for.
    modulePreload: { polyfill: false },
    // The policy of the page allows no `data:` address but those of pictures.
    assetsInlineLimit: 0,
  },
});
