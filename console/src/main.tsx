import { render } from 'preact';
import { App } from './app.js';
import { listenForKeys } from './keys.js';
import { showTheme } from './theme.js';

showTheme();
listenForKeys();
const place = document.getElementById('app');
if (place) render(<App />, place);
