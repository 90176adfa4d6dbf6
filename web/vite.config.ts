// Built into api/static, which the API serves at `/`. Every address in it is relative: it works under any path prefix.
import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [vue()],
  // vue-i18n: nothing of the Options API is used, and its own devtools hook is not shipped.
  define: { __VUE_OPTIONS_API__: true, __VUE_PROD_DEVTOOLS__: false, __VUE_I18N_LEGACY_API__: false, __INTLIFY_PROD_DEVTOOLS__: false },
  build: {
    outDir: "../api/static",
    emptyOutDir: true,
    target: "es2022",
    // A `data:` address would need one more exception in the Content-Security-Policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
});
